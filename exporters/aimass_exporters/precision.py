"""Precisions, and the bounds that an export of each is held to: one table, with the reasons."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from aimass.model.v1 import manifest_pb2 as manifest


class Precision(StrEnum):
    """How weights are stored and multiplied."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"

    @property
    def is_quantized(self) -> bool:
        """Whether weights are integers."""
        return self in (Precision.INT8, Precision.INT4)

    @property
    def as_proto(self) -> manifest.Precision.ValueType:
        """The same as the manifest writes it."""
        return manifest.Precision.Value(f"PRECISION_{self.name}")


@dataclass(frozen=True, slots=True)
class DecoderBounds:
    """What a decoder must reach against fp32 PyTorch on the same weights; None where a measure says
    nothing.
    """

    max_abs_diff_logits: float | None
    min_top1_agreement: float
    max_perplexity_increase: float | None
    """Relative: 0.02 allows 2 % more perplexity than PyTorch."""
    golden_tolerance_std: float
    """Drift allowed between machines, and between prompts and decode steps, when golden inputs are replayed,
    as a share of the logits' standard deviation. Where activations are rounded to integers a last bit that
    differs can turn a rounding, and through thirty layers that grows to 0.15 in the worst of 49,152 logits.
    """


@dataclass(frozen=True, slots=True)
class EncoderBounds:
    """What an encoder's pooled, normalised vectors must reach against fp32 PyTorch on the same weights."""

    max_abs_diff_vectors: float | None
    min_cosine: float
    """Of every text."""
    min_mean_cosine: float
    min_neighbour_overlap: float | None
    """Mean share of the ten nearest neighbours that stay the same."""
    golden_tolerance: float
    """Drift allowed between machines when golden inputs are replayed, per number of a vector of length 1."""


DECODER_BOUNDS: dict[Precision, DecoderBounds] = {
    # The same arithmetic in another order: float32 rounding over some thirty layers stays near 1e-4.
    Precision.FP32: DecoderBounds(1e-3, 0.999, None, 1e-3),
    # Eleven bits of mantissa: logits of size 20 carry steps of 0.016, and thirty layers add theirs. Among the
    # 40 positions compared, two may be near-ties that turn.
    Precision.FP16: DecoderBounds(0.25, 0.95, None, 0.05),
    # Weights in blocks of 64 with 8 bits, activations rounded to 8 bits in the same blocks. SmolLM2-135M:
    # 0.3 % more perplexity, 94 % of best tokens the same.
    Precision.INT8: DecoderBounds(None, 0.90, 0.02, 0.3),
    # Sixteen levels per block: a real loss, shipped only with its number. It shrinks as models grow.
    # SmolLM2-135M: 17 % more perplexity, 72 % of best tokens the same.
    Precision.INT4: DecoderBounds(None, 0.60, 0.35, 0.3),
}

ENCODER_BOUNDS: dict[Precision, EncoderBounds] = {
    Precision.FP32: EncoderBounds(1e-5, 0.99999, 0.99999, None, 1e-4),
    # Vectors of length 1 in hundreds of dimensions: numbers near 0.05 with eleven bits of mantissa.
    Precision.FP16: EncoderBounds(2e-3, 0.9999, 0.9999, None, 5e-3),
    # Fixed ranges of activations. MiniLM: cosine 0.9985, 95 % of neighbours; those at almost equal distance
    # may swap.
    Precision.INT8: EncoderBounds(None, 0.99, 0.996, 0.93, 2e-2),
    # MiniLM: cosine at least 0.946, 83 % of neighbours: for coarse search only.
    Precision.INT4: EncoderBounds(None, 0.90, 0.93, 0.75, 4e-2),
}


@dataclass(frozen=True, slots=True)
class Seq2SeqBounds:
    """What an encoder-decoder must reach against fp32 PyTorch on the same weights."""

    max_relative_error_encoder: float
    """Of all keys and values of the sources: root of the summed squares, against PyTorch's."""
    max_abs_diff_logits: float | None
    min_top1_agreement: float
    max_kl_divergence: float
    """Mean over the positions of PyTorch's own text, in nats."""
    max_token_error_rate: float
    """Tokens inserted, deleted or replaced in what the graphs write by themselves, by those of PyTorch."""
    golden_tolerance_std: float
    max_word_error_increase: float | None = None
    """Of speech: how much the word error rate may rise above PyTorch's, on sentences that a voice reads."""


SEQ2SEQ_BOUNDS: dict[Precision, Seq2SeqBounds] = {
    # The same arithmetic in another order; the same words to the last.
    Precision.FP32: Seq2SeqBounds(1e-4, 1e-3, 0.995, 1e-5, 0.0, 1e-3),
    # Blocks of 64 with 8 bits, both graphs: 2 % in the keys and values of tiny.en, 3 % of its tokens. A word
    # that PyTorch itself is unsure of may turn, and takes the commas after it along. What counts for speech
    # is how many more words are wrong.
    Precision.INT8: Seq2SeqBounds(0.05, None, 0.97, 0.005, 0.05, 0.3, max_word_error_increase=0.005),
}
