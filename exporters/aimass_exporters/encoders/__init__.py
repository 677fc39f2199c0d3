"""Encoders, with or without a head: weights, graph, parity, bundle."""
