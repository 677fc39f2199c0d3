"""The autoregressive engine: token ids in, token ids out. Knows no text, no tokenizer and no wire format."""
