"""Makes everything the other parts read, so that none stops to export or convert. Measures nothing."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

from bench import peers
from bench.environment import PeerUnavailable
from bench.models import INT4, LANGUAGE_MODELS, MINILM, PRECISIONS, SMOLLM2


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add nothing: there is nothing to choose."""


def run(options: argparse.Namespace, *, command: str) -> None:
    """Export every model at every precision, and convert it for every peer. What is there already is kept.

    A peer that cannot be had here is named, and the others are prepared.
    """
    for model in (*LANGUAGE_MODELS.values(), MINILM):
        for precision in PRECISIONS:
            _timed(f"{model.name} {precision}", partial(model.store, precision))
    for model in LANGUAGE_MODELS.values():
        _timed(f"{model.name} fp32 with a draft graph", model.drafted_store)
    _timed(f"{SMOLLM2.name} {INT4}", partial(SMOLLM2.store, INT4))
    for model in LANGUAGE_MODELS.values():
        for convert in (peers.causal_lm_folder, peers.ctranslate2_folder, peers.optimum_folder):
            _timed(f"{model.name} {convert.__name__}", partial(convert, model.find()))
    for precision in (*PRECISIONS, INT4):
        what = f"{SMOLLM2.name} {peers.GENAI.name} {precision}"
        _timed(what, partial(peers.genai_folder, SMOLLM2.find(), precision))
    for convert in (peers.ctranslate2_encoder_folder, peers.onnx_encoder_folder):
        _timed(f"{MINILM.name} {convert.__name__}", partial(convert, MINILM.find()))
    _timed(peers.INFINITY.name, peers.INFINITY.python)


def _timed(what: str, make: Callable[[], object]) -> None:
    start = time.monotonic()
    try:
        make()
    except PeerUnavailable as error:
        print(f"{what}: not prepared: {error}", flush=True)
        return
    print(f"{what}: {time.monotonic() - start:.0f} s", flush=True)
