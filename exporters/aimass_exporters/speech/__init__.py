"""Speech models: recognition and voice activity."""
