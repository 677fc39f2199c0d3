"""What each precision costs on held-out text: perplexity, divergence and best tokens against PyTorch.

Ours through the very runner that serves, CTranslate2 through `forward_batch`. No speed is measured here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from aimass_exporters.graphs.torch_threads import one_torch_thread
from aimass_exporters.progress import SilentProgress
from aimass_exporters.sources.held_out import held_out_texts
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bench import peers
from bench.generation import ctranslate2
from bench.machine import describe_machine
from bench.models import INT4, LANGUAGE_MODELS, PRECISIONS, SMOLLM2, BenchModel
from bench.study import Study
from bench.table import Panel, Table
from bench.teacher import Logits, Loss

ROW_TOKENS, ROWS_A_GROUP = 72, 8
FIRST_JUDGED = 8
"""Positions before this one have too little context to say much."""
REFERENCE = "PyTorch fp32"

Ids = NDArray[np.int64]
Forward = Callable[[Ids], Logits]
"""Takes ids [rows, tokens], returns logits [rows, tokens - FIRST_JUDGED, vocab] of the later positions."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this part."""
    parser.add_argument("--model", choices=LANGUAGE_MODELS, default=SMOLLM2.name)
    parser.add_argument("--texts", type=int, default=48, help=f"texts of {ROW_TOKENS} tokens; multiple of 8")


def run(options: argparse.Namespace, *, command: str) -> Study:
    """Measure every precision and return the report."""
    model = LANGUAGE_MODELS[options.model]
    ids = held_out_ids(model, options.texts)
    forwards = _forwards(model)
    losses = {name: Loss() for name in (REFERENCE, *forwards)}
    reference = _torch_forward(model)
    for group in ids.reshape(-1, ROWS_A_GROUP, ids.shape[1]):
        expected, following = reference(group), group[:, FIRST_JUDGED + 1 :].reshape(-1)
        for name, loss in losses.items():
            got = expected if name == REFERENCE else forwards[name](group)
            _add(loss, got, expected, following)
        print(f"{losses[REFERENCE].num_positions} positions", flush=True)
    return _study(model, losses, num_texts=len(ids), command=command)


def _add(loss: Loss, got: Logits, expected: Logits, following: Ids) -> None:
    """Add a group; the last position of each row is followed by nothing and does not count."""
    vocab = expected.shape[-1]
    loss.add(got[:, :-1].reshape(-1, vocab), expected[:, :-1].reshape(-1, vocab), following)


def held_out_ids(model: BenchModel, count: int) -> Ids:
    """Return beginnings of reviews as token ids [count, ROW_TOKENS]."""
    tokenizer = Tokenizer.from_file(str(peers.causal_lm_folder(model.find()) / "tokenizer.json"))
    texts = held_out_texts(SilentProgress())
    encoded = (tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
    rows = [ids[:ROW_TOKENS] for ids in encoded if len(ids) >= ROW_TOKENS][:count]
    if len(rows) < count or count % ROWS_A_GROUP:
        raise ValueError(f"expected a multiple of {ROWS_A_GROUP}, at most {len(rows)} texts, got {count}")
    return np.array(rows, np.int64)


def _forwards(model: BenchModel) -> Mapping[str, Forward]:
    precisions = (*PRECISIONS, INT4) if model.is_trained else PRECISIONS
    ours = {f"aimass {p}": partial(_our_logits, _runner(model, p)) for p in precisions}
    theirs = {ctranslate2(p): partial(_ct2_logits, *_ct2(model, p)) for p in PRECISIONS}
    return {**ours, **theirs}


def _runner(model: BenchModel, precision: str) -> Any:
    from aimass_decoding.runner import DECODER_ROLE, DecoderRunner, geometry_of
    from aimass_serving.session import SessionConfig, open_session
    from aimass_serving.store import open_store

    models = open_store(str(model.store(precision)))
    bundle = models.open(max(models.list(), key=lambda ref: int(ref.version)))
    session = open_session(bundle.graph(DECODER_ROLE), SessionConfig())
    geometry = geometry_of(bundle.manifest.decoder)
    return DecoderRunner(session, geometry, max_slots=ROWS_A_GROUP, max_len=ROW_TOKENS)


def _our_logits(runner: Any, ids: Ids) -> Logits:
    """Feed the rows as the engine would: prompts one by one, then step by step together."""
    for slot, row in enumerate(ids):
        runner.prefill(slot, row[:FIRST_JUDGED], start=0)
    steps = [
        runner.decode(ids[:, position], np.full(len(ids), position)).copy()
        for position in range(FIRST_JUDGED, ids.shape[1])
    ]
    return np.stack(steps, axis=1)


def _ct2(model: BenchModel, precision: str) -> tuple[Any, Tokenizer]:
    import ctranslate2

    folder = peers.ctranslate2_folder(model.find())
    compute_type = {"fp32": "float32", "int8": "int8"}[precision]
    generator = ctranslate2.Generator(str(folder), device="cpu", compute_type=compute_type)
    return generator, Tokenizer.from_file(str(Path(folder).with_name("transformers") / "tokenizer.json"))


def _ct2_logits(generator: Any, tokenizer: Tokenizer, ids: Ids) -> Logits:
    tokens = [[tokenizer.id_to_token(int(i)) for i in row] for row in ids]
    logits = np.array(generator.forward_batch(tokens), np.float32)  # [rows, tokens, vocab]
    return logits[:, FIRST_JUDGED:]


def _torch_forward(model: BenchModel) -> Forward:
    import torch
    from transformers import AutoModelForCausalLM

    folder = peers.causal_lm_folder(model.find())
    reference: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def forward(ids: Ids) -> Logits:
        with torch.inference_mode(), one_torch_thread():
            logits: Logits = reference(torch.from_numpy(ids), use_cache=False).logits.numpy()
        return logits[:, FIRST_JUDGED:]

    return forward


def _study(model: BenchModel, losses: Mapping[str, Loss], *, num_texts: int, command: str) -> Study:
    base = losses[REFERENCE].perplexity
    rows: list[list[str | float]] = [
        [name, loss.perplexity, f"{loss.perplexity / base - 1:+.2%}", loss.mean_kl, loss.top1_agreement]
        for name, loss in losses.items()
    ]
    columns = ["", "perplexity", "against PyTorch", "KL divergence (nats)", "top-1 agreement"]
    positions = losses[REFERENCE].num_positions
    heading = f"{num_texts} beginnings of film reviews, {positions} positions"
    panels = [
        Panel("perplexity", "lower is better", {name: loss.perplexity for name, loss in losses.items()}),
        Panel("KL divergence", "nats a position", {name: loss.mean_kl for name, loss in losses.items()}),
        Panel("top-1 agreement", "share", {name: loss.top1_agreement for name, loss in losses.items()}),
    ]
    weights = "" if model.is_trained else "Random weights: these figures say little about a trained model."
    aims = "Aim for int8: perplexity within 1 %, KL at most 0.03, top-1 at least 0.90."
    suffix = "" if model is SMOLLM2 else f"-{model.name.split('-')[0]}"
    return Study(
        f"generation-quality{suffix}",
        f"What a precision costs: {model.title}",
        command,
        describe_machine(),
        {"texts": num_texts, "tokens a text": ROW_TOKENS, "first position judged": FIRST_JUDGED},
        [Table(heading, columns, rows)],
        panels,
        [remark for remark in (aims, weights) if remark],
    )
