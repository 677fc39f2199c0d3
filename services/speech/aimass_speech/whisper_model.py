"""Whisper's graphs behind one face: windows to memories, tokens to logits, memories to alignments.

Knows the graphs and nothing of requests or time. One thread at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from aimass_decoding.cross_attention import SourceEncoder, SourceMemory
from aimass_decoding.runner import Runner
from aimass_serving.session import Session
from numpy.typing import NDArray

from aimass_speech.features import Behind, LogMel
from aimass_speech.whisper_spec import WhisperSpec


class WhisperModel:
    """One Whisper model on its slots."""

    def __init__(
        self,
        spec: WhisperSpec,
        encoder: SourceEncoder,
        runner: Runner,
        aligner: Session | None,
        *,
        num_slots: int,
        execution_provider: str,
    ) -> None:
        self.spec = spec
        self.runner = runner
        self.num_slots = num_slots
        self.execution_provider = execution_provider
        self._encoder = encoder
        self._aligner = aligner
        self._log_mel = LogMel(spec.mel)

    @property
    def can_align(self) -> bool:
        """Whether word times can be had."""
        return self._aligner is not None

    def encode(self, samples: NDArray[np.float32], *, num_samples: int, behind: Behind) -> SourceMemory:
        """Return what the encoder makes of samples [n] in a window of `num_samples`."""
        mel = self._log_mel(samples, num_samples=num_samples, behind=behind)
        (memory,) = self._encoder.encode({"mel": mel[None]})
        return memory

    def align(
        self, memory: SourceMemory, token_ids: Sequence[int], *, num_frames: int
    ) -> NDArray[np.float32]:
        """Return the scores [heads, tokens, num_frames] of the heads that align, before the softmax."""
        assert self._aligner is not None, "asked for only where there is an aligner"
        parts = (
            f"cross.{layer}.{part}" for layer in range(len(memory.arrays) // 2) for part in ("key", "value")
        )
        wanted = {info.name for info in self._aligner.inputs}
        feeds: dict[str, NDArray[Any]] = {
            name: array[None] for name, array in zip(parts, memory.arrays, strict=True) if name in wanted
        }
        feeds["input_ids"] = np.array([token_ids], np.int64)
        feeds["cross_len"] = np.array([memory.length], np.int32)
        scores: NDArray[np.float32] = self._aligner.run(feeds)["scores"][0, :, :, :num_frames]
        return scores
