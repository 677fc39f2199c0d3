"""Trains the upper layers of a BERT and its head; the lower layers stay, and are computed once.

With the lower layers fixed, a step costs only what is trained, so that minutes on a CPU are enough. Must not
know what the labels mean, nor where examples come from.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.nn.functional import cross_entropy
from transformers import BertPreTrainedModel
from transformers.utils import logging

from aimass_exporters.graphs.torch_threads import one_torch_thread
from aimass_exporters.progress import Progress

Model = TypeVar("Model", bound=BertPreTrainedModel)

NO_LABEL = -100
"""Target of a token that is not learned from."""
_WARM_UP_SHARE, _MAX_NORM, _POOL_BATCHES = 0.1, 1.0, 16


@dataclass(frozen=True, slots=True)
class Example:
    """One text and what it should be given."""

    input_ids: Sequence[int]
    """Special tokens included."""
    targets: Sequence[int]
    """One label for the text, or one for each token."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train."""

    num_fixed_layers: int
    """The embeddings and so many layers keep their weights."""
    num_epochs: int
    learning_rate: float
    """Its peak: it rises for a tenth of the steps, then falls to zero."""
    batch_rows: int = 16
    weight_decay: float = 0.01
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Encoded:
    """An example whose lower layers were computed."""

    hidden: torch.Tensor  # [num_tokens, hidden_size]
    targets: torch.Tensor  # [1] or [num_tokens]


@dataclass(frozen=True, slots=True)
class _Batch:
    hidden: torch.Tensor  # [rows, seq, hidden_size]
    attention_mask: torch.Tensor  # [rows, 1, 1, seq], added to attention scores
    targets: torch.Tensor  # [rows, 1] or [rows, seq]


def with_new_head(kind: type[Model], encoder: Path, labels: Sequence[str], *, seed: int) -> Model:
    """Return an encoder's weights under a head that is not trained yet."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns that the head is new: it is meant to be
    try:
        with seeded(seed):
            model: Model = kind.from_pretrained(
                encoder,
                id2label=dict(enumerate(labels)),
                label2id={label: i for i, label in enumerate(labels)},
                local_files_only=True,
                use_safetensors=True,
                attn_implementation="eager",
            )
            return model
    finally:
        logging.set_verbosity(before)


def fine_tune(
    model: BertPreTrainedModel,
    head: Callable[[torch.Tensor], torch.Tensor],
    examples: Sequence[Example],
    schedule: Schedule,
    progress: Progress,
) -> None:
    """Train the model in place; it ends in evaluation mode.

    `head` maps the last hidden states [rows, seq, hidden] to logits [rows, labels] or [rows, seq, labels].
    The same on every run of the same machine; rounding differs between machines.
    """
    with seeded(schedule.seed), one_torch_thread():
        encoded = _lower_layers(model, examples, schedule)
        optimizer, rates = _optimizer(model, schedule, num_steps=_num_steps(len(encoded), schedule))
        model.train()
        for done in _steps(model, head, encoded, schedule, optimizer, rates):
            progress.advance(done, _num_steps(len(encoded), schedule))
        model.train(False)


def _steps(
    model: BertPreTrainedModel,
    head: Callable[[torch.Tensor], torch.Tensor],
    encoded: Sequence[_Encoded],
    schedule: Schedule,
    optimizer: torch.optim.Optimizer,
    rates: torch.optim.lr_scheduler.LRScheduler,
) -> Iterator[int]:
    upper: Any = model.bert
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    shuffled, done = random.Random(schedule.seed), 0  # noqa: S311 - an order, not a secret
    for _ in range(schedule.num_epochs):
        for batch in _batches(encoded, schedule.batch_rows, shuffled):
            hidden = batch.hidden
            for layer in upper.encoder.layer[schedule.num_fixed_layers :]:
                hidden = layer(hidden, batch.attention_mask)[0]
            logits = head(hidden)
            loss = cross_entropy(logits.flatten(0, -2), batch.targets.flatten(), ignore_index=NO_LABEL)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, _MAX_NORM)
            optimizer.step()
            rates.step()
            optimizer.zero_grad(set_to_none=True)
            done += 1
            yield done


def _num_steps(num_examples: int, schedule: Schedule) -> int:
    return schedule.num_epochs * -(-num_examples // schedule.batch_rows)


def _lower_layers(
    model: BertPreTrainedModel, examples: Sequence[Example], schedule: Schedule
) -> list[_Encoded]:
    """Return the examples as the fixed layers see them, and fix those layers."""
    bert: Any = model.bert
    layers = bert.encoder.layer[: schedule.num_fixed_layers]
    for module in (bert.embeddings, *layers):
        module.requires_grad_(False)
    model.train(False)
    encoded = []
    with torch.inference_mode():
        for example in examples:
            hidden = bert.embeddings(torch.tensor([list(example.input_ids)]))
            for layer in layers:
                hidden = layer(hidden)[0]
            encoded.append(_Encoded(hidden[0], torch.tensor(list(example.targets))))
    return encoded


def _batches(encoded: Sequence[_Encoded], rows: int, shuffled: random.Random) -> Iterator[_Batch]:
    """Yield all examples in a new order, those of like length together."""
    order = list(range(len(encoded)))
    shuffled.shuffle(order)
    pools = [order[i : i + rows * _POOL_BATCHES] for i in range(0, len(order), rows * _POOL_BATCHES)]
    for pool in pools:
        pool.sort(key=lambda place: len(encoded[place].hidden))
    chosen = [pool[i : i + rows] for pool in pools for i in range(0, len(pool), rows)]
    shuffled.shuffle(chosen)
    for places in chosen:
        yield _padded([encoded[place] for place in places])


def _padded(examples: Sequence[_Encoded]) -> _Batch:
    pad = torch.nn.utils.rnn.pad_sequence
    hidden = pad([example.hidden.clone() for example in examples], batch_first=True)
    targets = pad([e.targets.clone() for e in examples], batch_first=True, padding_value=NO_LABEL)
    mask = torch.zeros(hidden.shape[:2])
    for row, example in enumerate(examples):
        mask[row, len(example.hidden) :] = torch.finfo(mask.dtype).min
    return _Batch(hidden, mask[:, None, None, :], targets)


def _optimizer(
    model: BertPreTrainedModel, schedule: Schedule, *, num_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    warm_up = max(1, int(_WARM_UP_SHARE * num_steps))

    def rate(step: int) -> float:
        return min((step + 1) / warm_up, (num_steps - step) / max(1, num_steps - warm_up))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a seed inside the block, and leave the process's own draws alone."""
    before = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(before)
