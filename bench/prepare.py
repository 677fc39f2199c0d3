"""Makes everything the other parts read, so that none stops to export or convert. Measures nothing."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from bench import peers
from bench.models import LANGUAGE_MODELS, MINILM, PRECISIONS


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add nothing: there is nothing to choose."""


def run(options: argparse.Namespace, *, command: str) -> None:
    """Export every model at every precision, and convert it for every peer. What is there already is kept."""
    for model in (*LANGUAGE_MODELS.values(), MINILM):
        for precision in PRECISIONS:
            _timed(f"{model.name} {precision}", lambda m=model, p=precision: m.store(p))  # type: ignore[misc]  # binds now
    for model in LANGUAGE_MODELS.values():
        for convert in (peers.causal_lm_folder, peers.ctranslate2_folder, peers.optimum_folder):
            _timed(f"{model.name} {convert.__name__}", lambda c=convert, m=model: c(m.find()))  # type: ignore[misc]  # binds now
    for convert in (peers.ctranslate2_encoder_folder, peers.onnx_encoder_folder):
        _timed(f"{MINILM.name} {convert.__name__}", lambda c=convert: c(MINILM.find()))  # type: ignore[misc]  # binds now


def _timed(what: str, make: Callable[[], object]) -> None:
    start = time.monotonic()
    make()
    print(f"{what}: {time.monotonic() - start:.0f} s", flush=True)
