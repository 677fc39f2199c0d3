"""Which modules of a transformers encoder-decoder do what: Whisper, BART, Marian and T5 in one form.

Each family is read into an `EncoderStack` and a `DecoderStack`, whose parts share the model's weights. Must
not know graphs, files or how a stack is run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from aimass_exporters.errors import UnsupportedModel
from aimass_exporters.graphs.slot_layers import (
    FullSelfAttention,
    Heads,
    RmsNorm,
    SlotCrossAttention,
    SlotSelfAttention,
    Source,
    StepState,
)

FAMILIES = ("whisper", "bart", "marian", "t5")
_BART_OFFSET = 2  # the first rows of BART's table of positions were padding once
_T5_POSITIONS = 512  # T5 knows distances, not positions; it was trained on so many


class EncoderBlock(nn.Module):
    """One layer of an encoder."""

    def __init__(
        self, attention: FullSelfAttention, norms: tuple[nn.Module, nn.Module], forward: nn.Module
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm, self.forward_norm = norms
        self.feed_forward = forward
        self.is_norm_first = True

    def forward(
        self, hidden: torch.Tensor, lengths: torch.Tensor | None, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Return [batch, seq, hidden]."""
        if self.is_norm_first:
            hidden = hidden + self.attention(self.attention_norm(hidden), lengths, bias)
            fed: torch.Tensor = self.feed_forward(self.forward_norm(hidden))
            return hidden + fed
        hidden = self.attention_norm(hidden + self.attention(hidden, lengths, bias))
        normed: torch.Tensor = self.forward_norm(hidden + self.feed_forward(hidden))
        return normed


class DecoderBlock(nn.Module):
    """One layer of a decoder."""

    def __init__(
        self,
        attention: SlotSelfAttention,
        cross: SlotCrossAttention,
        norms: tuple[nn.Module, nn.Module, nn.Module],
        forward: nn.Module,
    ) -> None:
        super().__init__()
        self.attention, self.cross = attention, cross
        self.attention_norm, self.cross_norm, self.forward_norm = norms
        self.feed_forward = forward
        self.is_norm_first = True

    def forward(
        self, hidden: torch.Tensor, layer: int, state: StepState | None, source: Source
    ) -> torch.Tensor:
        """Return [batch, seq, hidden]."""
        if self.is_norm_first:
            hidden = hidden + self.attention(self.attention_norm(hidden), layer, state)
            hidden = hidden + self.cross(self.cross_norm(hidden), layer, source)
            fed: torch.Tensor = self.feed_forward(self.forward_norm(hidden))
            return hidden + fed
        hidden = self.attention_norm(hidden + self.attention(hidden, layer, state))
        hidden = self.cross_norm(hidden + self.cross(hidden, layer, source))
        normed: torch.Tensor = self.forward_norm(hidden + self.feed_forward(hidden))
        return normed


class Embedding(nn.Module):
    """Tokens and, but for T5, their positions; BART normalises the sum."""

    def __init__(
        self, tokens: nn.Module, positions: nn.Parameter | None, norm: nn.Module, *, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.tokens, self.positions, self.norm, self.scale = tokens, positions, norm, scale

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Return [batch, seq, hidden] of int64 [batch, seq] and positions that broadcast to it."""
        hidden = self.tokens(input_ids) * self.scale if self.scale != 1.0 else self.tokens(input_ids)
        if self.positions is not None:
            hidden = hidden + nn.functional.embedding(position_ids, self.positions)
        normed: torch.Tensor = self.norm(hidden)
        return normed


class RelativeBias(nn.Module):
    """T5's bias of scores by the distance between query and key: a table of every distance that differs."""

    def __init__(self, attention: Any, *, is_bidirectional: bool) -> None:
        super().__init__()
        self.reach = int(attention.relative_attention_max_distance)
        first = -self.reach if is_bidirectional else 0
        self.first = first
        distances = torch.arange(first, self.reach + 1)  # query position minus key position
        buckets = attention._relative_position_bucket(
            -distances,
            bidirectional=is_bidirectional,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=self.reach,
        )
        with torch.no_grad():
            table = attention.relative_attention_bias(buckets)
        self.table = nn.Parameter(table.clone(), requires_grad=False)  # [distances, heads]

    def forward(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Return [batch, heads, seq, source] for positions [batch, seq] and [source]."""
        distances = queries.unsqueeze(-1) - keys  # [batch, seq, source]
        rows = torch.clamp(distances, self.first, self.reach) - self.first
        return nn.functional.embedding(rows.long(), self.table).permute(0, 3, 1, 2)


@dataclass(frozen=True, slots=True)
class CrossProjection:
    """What gives a decoder layer's keys and values of a source."""

    key: nn.Linear
    value: nn.Linear


@dataclass(frozen=True, slots=True)
class EncoderStack:
    """The parts of an encoder, in the order they run."""

    blocks: list[EncoderBlock]
    final_norm: nn.Module
    embedding: Embedding | None
    """None for Whisper, which reads a spectrogram."""
    bias: RelativeBias | None


@dataclass(frozen=True, slots=True)
class DecoderStack:
    """The parts of a decoder, in the order they run."""

    blocks: list[DecoderBlock]
    final_norm: nn.Module
    embedding: Embedding
    bias: RelativeBias | None
    output: nn.Linear
    output_scale: float
    output_bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Seq2SeqParts:
    """A model, taken apart. It shares the model's weights but for the packed ones of self-attention."""

    family: str
    encoder: EncoderStack
    decoder: DecoderStack
    cross: list[CrossProjection]
    heads: Heads
    vocab_size: int
    max_positions: int
    max_source_positions: int


def seq2seq_parts(model: PreTrainedModel) -> Seq2SeqParts:
    """Take a model apart. Raises `UnsupportedModel` for a family that is not one of `FAMILIES`."""
    readers: dict[str, Callable[[PreTrainedModel], Seq2SeqParts]] = {
        "whisper": _whisper,
        "bart": _bart,
        "marian": _marian,
        "t5": _t5,
    }
    reader = readers.get(model.config.model_type)
    if reader is None:
        raise UnsupportedModel(
            model.config.model_type, because=f"encoder-decoders are exported of {', '.join(FAMILIES)}"
        )
    return reader(model)


def _whisper(model: Any) -> Seq2SeqParts:
    inner = model.model
    encoder = EncoderStack(_encoder_blocks(inner.encoder.layers), inner.encoder.layer_norm, None, None)
    decoder = DecoderStack(
        blocks=_decoder_blocks(inner.decoder.layers),
        final_norm=inner.decoder.layer_norm,
        embedding=Embedding(inner.decoder.embed_tokens, inner.decoder.embed_positions.weight, nn.Identity()),
        bias=None,
        output=model.proj_out,
        output_scale=1.0,
        output_bias=None,
    )
    config = model.config
    return _assembled(
        model, encoder, decoder, positions=(config.max_target_positions, config.max_source_positions)
    )


def _bart(model: Any) -> Seq2SeqParts:
    def embedding(stack: Any) -> Embedding:
        positions = nn.Parameter(stack.embed_positions.weight[_BART_OFFSET:], requires_grad=False)
        return Embedding(stack.embed_tokens, positions, stack.layernorm_embedding)

    return _post_norm(model, embedding)


def _marian(model: Any) -> Seq2SeqParts:
    def embedding(stack: Any) -> Embedding:
        weight = stack.embed_positions.weight
        return Embedding(stack.embed_tokens, weight, nn.Identity(), scale=float(stack.embed_scale))

    return _post_norm(model, embedding)


def _post_norm(model: Any, embedding: Callable[[Any], Embedding]) -> Seq2SeqParts:
    """Read BART and what was copied from it: norms come after the sum, none at the end."""
    inner = model.model
    encoder = EncoderStack(
        _encoder_blocks(inner.encoder.layers), nn.Identity(), embedding(inner.encoder), None
    )
    decoder = DecoderStack(
        blocks=_decoder_blocks(inner.decoder.layers),
        final_norm=nn.Identity(),
        embedding=embedding(inner.decoder),
        bias=None,
        output=model.lm_head,
        output_scale=1.0,
        output_bias=model.final_logits_bias,
    )
    for layer in encoder.blocks:
        layer.is_norm_first = False
    for block in decoder.blocks:
        block.is_norm_first = False
    limit = model.config.max_position_embeddings
    return _assembled(model, encoder, decoder, positions=(limit, limit))


def _assembled(
    model: Any, encoder: EncoderStack, decoder: DecoderStack, *, positions: tuple[int, int]
) -> Seq2SeqParts:
    layers = model.model.decoder.layers
    return Seq2SeqParts(
        family=model.config.model_type,
        encoder=encoder,
        decoder=decoder,
        cross=[CrossProjection(x.encoder_attn.k_proj, x.encoder_attn.v_proj) for x in layers],
        heads=_heads(layers[0].self_attn),
        vocab_size=model.config.vocab_size,
        max_positions=positions[0],
        max_source_positions=positions[1],
    )


def _encoder_blocks(layers: Any) -> list[EncoderBlock]:
    return [
        EncoderBlock(
            FullSelfAttention(_projections(x.self_attn), x.self_attn.out_proj, _heads(x.self_attn)),
            (x.self_attn_layer_norm, x.final_layer_norm),
            nn.Sequential(x.fc1, x.activation_fn, x.fc2),
        )
        for x in layers
    ]


def _decoder_blocks(layers: Any) -> list[DecoderBlock]:
    return [
        DecoderBlock(
            SlotSelfAttention(_projections(x.self_attn), x.self_attn.out_proj, _heads(x.self_attn)),
            SlotCrossAttention(x.encoder_attn.q_proj, x.encoder_attn.out_proj, _heads(x.encoder_attn)),
            (x.self_attn_layer_norm, x.encoder_attn_layer_norm, x.final_layer_norm),
            nn.Sequential(x.fc1, x.activation_fn, x.fc2),
        )
        for x in layers
    ]


def _projections(attention: Any) -> list[nn.Linear]:
    return [attention.q_proj, attention.k_proj, attention.v_proj]


def _heads(attention: Any) -> Heads:
    return Heads(int(attention.num_heads), int(attention.head_dim), float(attention.scaling))


def _t5(model: Any) -> Seq2SeqParts:
    config = model.config
    heads = Heads(config.num_heads, config.d_kv, 1.0)
    limit = getattr(config, "n_positions", None) or _T5_POSITIONS
    return Seq2SeqParts(
        family=config.model_type,
        encoder=_t5_encoder(model.encoder, heads),
        decoder=_t5_decoder(model, heads),
        cross=[
            CrossProjection(b.layer[1].EncDecAttention.k, b.layer[1].EncDecAttention.v)
            for b in model.decoder.block
        ],
        heads=heads,
        vocab_size=config.vocab_size,
        max_positions=limit,
        max_source_positions=limit,
    )


def _t5_encoder(stack: Any, heads: Heads) -> EncoderStack:
    blocks = []
    for block in stack.block:
        attend, feed = block.layer
        attention = FullSelfAttention(_t5_projections(attend.SelfAttention), attend.SelfAttention.o, heads)
        norms = (_t5_norm(attend.layer_norm), _t5_norm(feed.layer_norm))
        blocks.append(EncoderBlock(attention, norms, feed.DenseReluDense))
    bias = RelativeBias(stack.block[0].layer[0].SelfAttention, is_bidirectional=True)
    return EncoderStack(blocks, _t5_norm(stack.final_layer_norm), _t5_embedding(stack), bias)


def _t5_decoder(model: Any, heads: Heads) -> DecoderStack:
    stack, blocks = model.decoder, []
    for block in stack.block:
        attend, cross, feed = block.layer
        attention = SlotSelfAttention(_t5_projections(attend.SelfAttention), attend.SelfAttention.o, heads)
        crossing = SlotCrossAttention(cross.EncDecAttention.q, cross.EncDecAttention.o, heads)
        norms = (_t5_norm(attend.layer_norm), _t5_norm(cross.layer_norm), _t5_norm(feed.layer_norm))
        blocks.append(DecoderBlock(attention, crossing, norms, feed.DenseReluDense))
    return DecoderStack(
        blocks=blocks,
        final_norm=_t5_norm(stack.final_layer_norm),
        embedding=_t5_embedding(stack),
        bias=RelativeBias(stack.block[0].layer[0].SelfAttention, is_bidirectional=False),
        output=model.lm_head,
        output_scale=model.config.d_model**-0.5 if model.config.tie_word_embeddings else 1.0,
        output_bias=None,
    )


def _t5_projections(attention: Any) -> list[nn.Linear]:
    return [attention.q, attention.k, attention.v]


def _t5_norm(norm: Any) -> RmsNorm:
    return RmsNorm(norm.weight, float(norm.variance_epsilon))


def _t5_embedding(stack: Any) -> Embedding:
    return Embedding(stack.embed_tokens, None, nn.Identity())
