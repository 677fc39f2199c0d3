"""Generated from `protos/aimass/generation`."""
