"""Decoder language models: weights, graph, parity, bundle."""
