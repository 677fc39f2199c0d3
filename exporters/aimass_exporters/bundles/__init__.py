"""What every bundle holds beside its graphs: manifest, tokenizer, parity record."""
