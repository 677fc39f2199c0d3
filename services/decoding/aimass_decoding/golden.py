"""Replays a bundle's golden prompt, so that an engine that starts is known to give the export's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from aimass_serving.errors import BadBundle
from numpy.typing import NDArray

from aimass_decoding.cross_attention import SourceMemory
from aimass_decoding.runner import Runner

_SLOT = 0


_ENCODER_PREFIX = "encoder."


def encoder_feeds(golden: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the inputs of the encoder that a golden prompt of an encoder-decoder belongs to: one source."""
    return {
        name.removeprefix(_ENCODER_PREFIX): array
        for name, array in golden.items()
        if name.startswith(_ENCODER_PREFIX)
    }


def replay_golden(
    runner: Runner,
    golden: Mapping[str, NDArray[Any]],
    *,
    bundle: str,
    memory: SourceMemory | None = None,
    num_adapters: int = 0,
) -> None:
    """Run the golden prompt whole, then again with its last token as a decode step; compare the logits.

    `golden` holds `prompt_ids` int64 [n], `logits` float32 [vocab] and `tolerance`, the largest absolute
    difference that is allowed; `memory` is what the encoder made of `encoder_feeds`. With adapters it also
    holds `adapter_logits` [adapters, vocab] and `adapter_tolerances` [adapters]: what the same prompt gives
    with each. Overwrites slot 0. Raises `BadBundle` on any difference or failure.
    """
    try:
        prompt_ids = np.asarray(golden["prompt_ids"], np.int64)
        runner.set_memory(_SLOT, memory)
        for adapter, (expected, tolerance) in enumerate(_expectations(golden, num_adapters, bundle=bundle)):
            runner.set_adapter(_SLOT, adapter)
            _compare(runner.prefill(_SLOT, prompt_ids, start=0), expected, tolerance, bundle=bundle)
            if len(prompt_ids) > 1:
                _compare(_by_decoding(runner, prompt_ids), expected, tolerance, bundle=bundle)
    except BadBundle:
        raise
    except Exception as error:  # whatever the runtime raises on a graph that does not fit its manifest
        raise BadBundle(bundle, detail=f"its golden prompt does not run: {error}") from error


def replay_draft(runner: Runner, golden: Mapping[str, NDArray[Any]], *, bundle: str) -> None:
    """Run the golden prompt on a draft graph, which need not give the same logits: they are only guesses.

    Overwrites slot 0. Raises `BadBundle` when it does not run.
    """
    try:
        prompt_ids = np.asarray(golden["prompt_ids"], np.int64)
        for place, token_id in enumerate(prompt_ids):
            runner.prefill(_SLOT, np.array([token_id]), start=place)
    except Exception as error:  # whatever the runtime raises on a graph that does not fit its manifest
        raise BadBundle(bundle, detail=f"its draft graph does not run: {error}") from error


def _expectations(
    golden: Mapping[str, NDArray[Any]], num_adapters: int, *, bundle: str
) -> list[tuple[NDArray[np.float32], float]]:
    """Return logits [vocab] and tolerance without an adapter, then with each."""
    expectations = [(golden["logits"], float(golden["tolerance"]))]
    if num_adapters:
        expectations += zip(golden["adapter_logits"], golden["adapter_tolerances"].tolist(), strict=True)
    if len(expectations) != num_adapters + 1:
        got = len(expectations) - 1
        raise BadBundle(bundle, detail=f"expected golden logits of {num_adapters} adapters, got {got}")
    return expectations


def _by_decoding(runner: Runner, prompt_ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the logits [vocab] after the prompt, its last token being fed by a decode step."""
    runner.prefill(_SLOT, prompt_ids[:-1], start=0)
    logits: NDArray[np.float32] = runner.decode(prompt_ids[-1:], np.array([len(prompt_ids) - 1]))[0]
    return logits


def _compare(
    got: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float, *, bundle: str
) -> None:
    if got.shape != expected.shape:
        raise BadBundle(bundle, detail=f"expected logits of shape {expected.shape}, got {got.shape}")
    difference = float(np.max(np.abs(got - expected)))
    if not difference <= tolerance:  # also when it is NaN
        detail = f"its golden logits differ by {difference:.3g}, expected at most {tolerance:.3g}"
        raise BadBundle(bundle, detail=detail)
