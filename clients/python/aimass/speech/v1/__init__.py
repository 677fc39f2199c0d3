"""Generated from `protos/aimass/speech/v1`."""
