"""Sequences of random tokens as a decoder's graph takes them: enough to see which channels reach far.

SmolLM2's int8 graph is as good with them as with text (docs/decisions/020). Must not know what they are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aimass_exporters.decoders.decoder_export import DecoderShape
from aimass_exporters.graphs.adapted_products import ADAPTER_INPUT

NUM_SEQUENCES, NUM_TOKENS = 16, 64
_SEED = 0


def random_sequences(shape: DecoderShape, *, has_adapters: bool) -> Sequence[dict[str, NDArray[Any]]]:
    """Return the inputs of as many runs, one sequence each, always the same; no adapter is chosen."""
    length = min(NUM_TOKENS, shape.max_positions)
    ids = np.random.default_rng(_SEED).integers(shape.vocab_size, size=(NUM_SEQUENCES, 1, length))
    cache = np.zeros((1, shape.num_kv_heads, length, shape.head_dim), np.float32)
    shared: dict[str, NDArray[Any]] = {
        "position_ids": np.arange(length)[np.newaxis],
        "seqlens_k": np.array([length - 1], np.int32),
        "total_len": np.array([length], np.int32),
        "last_idx": np.array([[length - 1]]),
        **{f"past.{i}.{kind}": cache for i in range(shape.num_layers) for kind in ("key", "value")},
    }
    if has_adapters:
        shared[ADAPTER_INPUT] = np.zeros(1, np.int64)
    return [{"input_ids": row} | shared for row in ids]
