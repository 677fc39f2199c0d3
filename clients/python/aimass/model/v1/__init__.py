"""Generated from `protos/aimass/model/v1`."""
