"""Generated from `protos/aimass/generation/v1`."""
