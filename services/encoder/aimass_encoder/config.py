"""Settings of the encoder service: `AIMASS_ENCODER_<FIELD>`. Knows no model and no request."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aimass_serving.cpu import usable_cores
from aimass_serving.session import CUDA_PROVIDER

from aimass_encoder.batcher import BatchLimits

CUDA_LENGTH_MULTIPLE = 8
"""CUDA kernels are chosen by shape, so few shapes pay off there. On the CPU every length ran at the speed of
its own tokens, and padding only costs."""


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """What the encoder service takes and how it batches."""

    max_batch_items: int = 2048
    """Texts of one call."""
    max_text_chars: int = 262_144
    """Characters of one text. Longer ones are refused before they are tokenised."""
    cpu_batch_tokens: int = 1024
    """Tokens of one batch on the CPU, where larger batches are hardly faster and keep urgent calls waiting
    longer. Raised to the model's longest text if that is more."""
    cuda_batch_tokens: int = 16_384
    """Rows times padded length of one batch on CUDA. Raised likewise."""
    max_output_bytes: int = 268_435_456
    """Bytes that one run may put out, which bounds batches of models with a number for each word of the
    vocabulary. Raised to what the model's longest text needs."""
    max_batch_rows: int = 256
    """Texts of one batch."""
    cpu_lanes: int = 0
    """Runs of a graph side by side that batches are cut for on the CPU; 0: one for each usable core."""
    cpu_max_amplification: float = 3.0
    """Bound of n * max(len)^2 / sum(len^2) over a batch's lengths on the CPU, where a batch runs in pieces of
    about one length: short texts do not wait long for long ones."""
    cuda_max_amplification: float = 1.5
    """The same over padded lengths on CUDA, where a batch runs in one piece: what padding costs attention."""
    max_queue_tokens: int = 131_072
    """Calls are admitted while fewer tokens than this wait."""
    patience_s: float = 5.0
    """A text is due this long after its turn, or at its deadline if that is earlier."""
    num_tokenizer_threads: int = 2
    """Calls tokenised at the same time."""
    max_tokenizing_chars: int = 8_388_608
    """Calls are admitted while fewer characters than this wait for a tokeniser."""
    stream_window: int = 64
    """Texts of one stream that are in work at once; the stream is not read further until one is answered."""

    max_batch_images: int = 256
    """Images of one call."""
    images_per_batch: int = 8
    """Images that run together."""
    max_queue_images: int = 256
    """Calls with images are admitted while fewer than this wait."""
    max_decoding_bytes: int = 67_108_864
    """Calls with images are admitted while fewer bytes than this wait to be decoded."""
    max_table_rows: int = 16_384
    """Rows of one call."""
    rows_per_batch: int = 1024
    """Rows of tables that run together."""
    max_queue_rows: int = 65_536
    """Calls with rows are admitted while fewer than this wait."""

    def image_limits(self, execution_provider: str) -> BatchLimits:
        """Return the batcher's limits for images, which count as one token each."""
        limits = self._limits_of(self.images_per_batch, self.max_queue_images)
        return replace(limits, num_lanes=self._num_lanes(execution_provider))

    @property
    def table_limits(self) -> BatchLimits:
        """The batcher's limits for rows of tables, which count as one token each."""
        return self._limits_of(self.rows_per_batch, self.max_queue_rows)

    def _limits_of(self, num_rows: int, max_queued: int) -> BatchLimits:
        return BatchLimits(
            max_batch_tokens=num_rows,
            max_batch_rows=num_rows,
            max_queue_tokens=max_queued,
            patience_s=self.patience_s,
        )

    def batch_limits(
        self, execution_provider: str, *, max_tokens: int, output_bytes_per_token: int = 0
    ) -> BatchLimits:
        """Return the batcher's limits for a model whose longest text has `max_tokens`."""
        is_cuda = execution_provider == CUDA_PROVIDER
        multiple = CUDA_LENGTH_MULTIPLE if is_cuda else 1
        longest = -(-max_tokens // multiple) * multiple
        budget = self.cuda_batch_tokens if is_cuda else self.cpu_batch_tokens
        if output_bytes_per_token:
            budget = min(budget, self.max_output_bytes // output_bytes_per_token)
        return BatchLimits(
            max_batch_tokens=max(budget, longest),
            max_batch_rows=self.max_batch_rows,
            max_amplification=self.cuda_max_amplification if is_cuda else self.cpu_max_amplification,
            max_queue_tokens=self.max_queue_tokens,
            patience_s=self.patience_s,
            length_multiple=multiple,
            num_lanes=self._num_lanes(execution_provider),
        )

    def _num_lanes(self, execution_provider: str) -> int:
        """Return the runs side by side that batches are cut for; 0 on CUDA, where one run takes all."""
        return 0 if execution_provider == CUDA_PROVIDER else self.cpu_lanes or usable_cores()
