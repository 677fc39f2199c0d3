"""Encoder-decoders: graphs, parity, and the bundles of text models."""
