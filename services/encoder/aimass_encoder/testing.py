"""Fakes of the encoder's seams: a graph written in NumPy that can be held, and a tokeniser of words."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from aimass_serving.compute import ComputePermit
from aimass_serving.session import CPU_PROVIDER, TensorInfo
from aimass_serving.testing import FakeSession
from numpy.typing import NDArray

from aimass_encoder.config import EncoderConfig
from aimass_encoder.engine import EncoderEngine
from aimass_encoder.pooling import Pooling
from aimass_encoder.request import Truncation
from aimass_encoder.runner import HIDDEN, MASK, TOKEN_IDS, EncoderRunner
from aimass_encoder.spec import EmbeddingSpec
from aimass_encoder.tokenization import TextInput, TokenizedText, TokenSpans, kept_tokens

HIDDEN_SIZE, MAX_TOKENS = 8, 16
START_ID, END_ID, POISON_ID = 1, 2, 3
_FIRST_WORD_ID, _NUM_WORD_IDS = 10, 990


class FakeEncoderGraph:
    """An encoder whose tokens see one another and not the padding.

    The token `poison` makes its own row NaN. Between `hold` and `open`, runs wait to be let through one by
    one: tests then know what is queued.
    """

    def __init__(self) -> None:
        self._table = np.random.default_rng(0).normal(size=(1000, HIDDEN_SIZE)).astype(np.float32)
        self._changed = threading.Condition()
        self._is_held = False
        self._num_allowed = 0
        self.shapes: list[tuple[int, int]] = []
        """Shape of each run, begun or done."""
        self.failure: Exception | None = None
        """Raised by runs while set."""

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        token_ids, mask = feeds[TOKEN_IDS], feeds[MASK][:, :, None]
        self.shapes.append(token_ids.shape)
        self._wait_at_gate()
        if self.failure is not None:
            raise self.failure
        tokens = self._table[token_ids]  # [batch, seq, hidden_size]
        context = (tokens * mask).sum(axis=1, keepdims=True) / mask.sum(axis=1, keepdims=True)
        poison = np.where((token_ids == POISON_ID).any(axis=1)[:, None, None], np.nan, 0)
        return {HIDDEN: (tokens + context + poison).astype(np.float32)}

    def hold(self) -> None:
        """Let runs begin but not end."""
        with self._changed:
            self._is_held = True

    def let_through(self, num_runs: int = 1) -> None:
        """Let so many held runs end."""
        with self._changed:
            self._num_allowed += num_runs
            self._changed.notify_all()

    def open(self) -> None:
        """Let all runs end, now and from now on."""
        with self._changed:
            self._is_held = False
            self._changed.notify_all()

    def _wait_at_gate(self) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: not self._is_held or self._num_allowed, timeout=30):
                raise TimeoutError("the test never let this run through")
            self._num_allowed -= self._is_held


def fake_session(graph: FakeEncoderGraph, *, execution_provider: str = CPU_PROVIDER) -> FakeSession:
    """Return a session that runs `graph`."""
    dtype = np.dtype(np.int64)
    return FakeSession(
        graph,
        inputs=[TensorInfo(TOKEN_IDS, dtype, ("batch", "seq")), TensorInfo(MASK, dtype, ("batch", "seq"))],
        outputs=[TensorInfo(HIDDEN, np.dtype(np.float32), ("batch", "seq", HIDDEN_SIZE))],
        execution_provider=execution_provider,
    )


FAKE_SPEC = EmbeddingSpec(
    hidden_size=HIDDEN_SIZE,
    max_tokens=MAX_TOKENS,
    pooling=Pooling.MEAN,
    normalize=True,
    prompts={"query": "query : "},
)


def fake_engine(
    graph: FakeEncoderGraph, config: EncoderConfig | None = None, *, model: str = "fake"
) -> EncoderEngine:
    """Return a started engine that reads words and runs `graph`, by default in batches of 64 tokens."""
    engine = EncoderEngine(
        EncoderRunner(fake_session(graph), pad_token_id=0),
        WordTokenizer(),
        FAKE_SPEC,
        model=model,
        config=config or EncoderConfig(cpu_batch_tokens=64, cpu_lanes=1),
        permit=ComputePermit(),
    )
    engine.start()
    return engine


class WordTokenizer:
    """One token a word, between a start and an end token. The word `poison` is `POISON_ID`."""

    def __init__(self, *, max_tokens: int = MAX_TOKENS) -> None:
        self._max_tokens = max_tokens

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    def tokenize(
        self, texts: Sequence[TextInput], truncation: Truncation, *, needs_spans: bool = False
    ) -> Sequence[TokenizedText]:
        return [self._tokenized(text, truncation, needs_spans=needs_spans) for text in texts]

    def _tokenized(self, text: TextInput, truncation: Truncation, *, needs_spans: bool) -> TokenizedText:
        texts = (text,) if isinstance(text, str) else text
        words = [(part, match) for part, t in enumerate(texts) for match in re.finditer(r"\S+", t)]
        parts = np.array([-1, *(part for part, _ in words), -1], np.int64)
        kept = kept_tokens(parts, max_tokens=self._max_tokens, truncation=truncation)
        token_ids = np.array([START_ID, *(_word_id(m.group()) for _, m in words), END_ID], np.int64)
        offsets = np.array([(0, 0), *(m.span() for _, m in words), (0, 0)], np.int64)
        numbers = np.array([-1, *range(len(words)), -1], np.int64)
        return TokenizedText(
            token_ids[kept],
            len(parts) - len(kept),
            type_ids=None if isinstance(text, str) else np.maximum(parts, 0)[kept],
            spans=TokenSpans(offsets[kept], numbers[kept], parts[kept]) if needs_spans else None,
        )


def _word_id(word: str) -> int:
    return POISON_ID if word == "poison" else _FIRST_WORD_ID + sum(word.encode()) % _NUM_WORD_IDS
