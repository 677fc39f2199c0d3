"""What a manifest says of the decoder of an encoder-decoder."""

from __future__ import annotations

from collections.abc import Iterable

from aimass.model.v1.manifest_pb2 import CrossAttentionSpec, DecoderSpec

from aimass_exporters.seq2seq.seq2seq_families import Seq2SeqParts


def seq2seq_decoder_spec(parts: Seq2SeqParts, *, eos_token_ids: Iterable[int]) -> DecoderSpec:
    """Return the sizes of a model's decoder and of what it keeps of a source."""
    return DecoderSpec(
        num_layers=len(parts.cross),
        num_kv_heads=parts.heads.num_heads,
        head_dim=parts.heads.head_dim,
        vocab_size=parts.vocab_size,
        max_positions=parts.max_positions,
        kv_dtype="float",
        eos_token_ids=eos_token_ids,
        cross_attention=CrossAttentionSpec(
            num_heads=parts.heads.num_heads,
            head_dim=parts.heads.head_dim,
            max_source_positions=parts.max_source_positions,
        ),
    )
