"""Generated from `protos/aimass/model`."""
