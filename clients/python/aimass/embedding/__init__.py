"""Generated from `protos/aimass/embedding`."""
