"""Generated from `protos/aimass/common`."""
