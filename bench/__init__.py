"""Benchmarks: aimass beside its peers, on the same weights, in one run on one machine. No part of the tests.

`python -m bench generation` prints its tables and writes docs/benchmarks/generation.{json,md,png}.
"""
