"""Generated from `protos/aimass/common/v1`."""
