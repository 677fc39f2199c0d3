"""Generated from `protos/aimass/classification`."""
