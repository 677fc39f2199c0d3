"""The speech service: recognition, synthesis and voice activity detection."""
