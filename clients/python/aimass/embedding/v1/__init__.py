"""Generated from `protos/aimass/embedding/v1`."""
