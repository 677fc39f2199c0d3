"""The encoder service: whatever one forward pass of an encoder gives, batched by padded tokens."""
