"""Generated from `protos/aimass/speech`."""
