"""The text generation service: text in, text out, on top of `aimass_decoding`."""
