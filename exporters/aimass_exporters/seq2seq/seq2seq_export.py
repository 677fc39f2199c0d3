"""Turns an encoder-decoder model of transformers into graphs: `encoder`, `decoder` and, for speech,
`aligner`.

- encoder: source -> keys and values of every decoder layer, `cross.{i}.key|value` [batch, heads, source,
  head_dim].
- decoder: the contract of `decoder_export`, and `cross.{i}.key|value` [sources, ...] with `cross_len` int32
  [sources], the number of valid positions of each source. They are inputs only: the runtime binds them in
  place. `cross_readers` int64 [sources, width] names the rows that attend to each source, `cross_places`
  int64 [batch] the place of each row among them: the beams of a search read their source once.
- aligner: a token sequence and its source -> cross-attention scores of chosen heads. Never run while
  decoding.

Must not know where the model came from, nor how the bundle is packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from aimass_exporters.graphs.slot_layers import Source, StepState, split_heads
from aimass_exporters.graphs.tracing import OPSET, Port, PortList, trace
from aimass_exporters.seq2seq.seq2seq_families import Seq2SeqParts, seq2seq_parts

ENCODER_FILE, DECODER_FILE, ALIGNER_FILE = "encoder.onnx", "decoder.onnx", "aligner.onnx"
_BATCH, _SOURCES, _SEQ, _ASKED, _MAX_LEN, _SOURCE, _MEL_COLUMNS = 6, 2, 5, 3, 32, 7, 40

Head = tuple[int, int]
"""Layer and head of a cross-attention head."""


def cross_names(num_layers: int) -> list[str]:
    """Return the names of the keys and values of a source, in the graphs' order."""
    return [f"cross.{layer}.{part}" for layer in range(num_layers) for part in ("key", "value")]


class _Encoder(nn.Module):
    """Runs an encoder's blocks, and what every decoder layer makes of their result."""

    def __init__(self, parts: Seq2SeqParts) -> None:
        super().__init__()
        stack = parts.encoder
        self.blocks, self.final_norm = nn.ModuleList(stack.blocks), stack.final_norm
        self.keys = nn.ModuleList(p.key for p in parts.cross)
        self.values = nn.ModuleList(p.value for p in parts.cross)
        self.heads = parts.heads

    def read(
        self, hidden: torch.Tensor, lengths: torch.Tensor | None, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        """Return key and value [batch, heads, source, head_dim] of each decoder layer."""
        for block in self.blocks:
            hidden = block(hidden, lengths, bias)
        hidden = self.final_norm(hidden)
        cross = []
        for key, value in zip(self.keys, self.values, strict=True):
            cross += [split_heads(key(hidden), self.heads), split_heads(value(hidden), self.heads)]
        return tuple(cross)


class SpeechEncoder(_Encoder):
    """Whisper's encoder, for windows of any even number of columns up to the one it was trained on."""

    def __init__(self, model: PreTrainedModel, parts: Seq2SeqParts) -> None:
        super().__init__(parts)
        encoder = model.model.encoder
        self.conv1, self.conv2 = encoder.conv1, encoder.conv2
        self.positions = encoder.embed_positions.weight

    def forward(self, mel: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the keys and values of log-mel [batch, mels, columns]: [batch, heads, columns / 2,
        head_dim].
        """
        hidden = nn.functional.gelu(self.conv1(mel))
        hidden = nn.functional.gelu(self.conv2(hidden)).transpose(1, 2)
        return self.read(hidden + self.positions[: hidden.shape[1]], None, None)


class TextEncoder(_Encoder):
    """An encoder of token ids, rows filled up on the right."""

    def __init__(self, parts: Seq2SeqParts) -> None:
        super().__init__(parts)
        self.embedding, self.bias = parts.encoder.embedding, parts.encoder.bias

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the keys and values of int64 [batch, source]; what is masked means nothing."""
        assert self.embedding is not None, "a text encoder has embeddings"
        positions = torch.arange(input_ids.shape[1])
        lengths = attention_mask.sum(-1).to(torch.int32)
        bias = None if self.bias is None else self.bias(positions.unsqueeze(0), positions)
        return self.read(self.embedding(input_ids, positions), lengths, bias)


class _Decoder(nn.Module):
    def __init__(self, parts: Seq2SeqParts) -> None:
        super().__init__()
        stack = parts.decoder
        self.blocks, self.final_norm = nn.ModuleList(stack.blocks), stack.final_norm
        self.embedding = stack.embedding

    def run(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, state: StepState | None, source: Source
    ) -> torch.Tensor:
        """Return [batch, seq, hidden] after the last block."""
        hidden: torch.Tensor = self.embedding(input_ids, position_ids)
        for layer, block in enumerate(self.blocks):
            hidden = block(hidden, layer, state, source)
        return hidden


class SlotDecoder(_Decoder):
    """A decoder on slots: logits of the asked positions of each row, and the present cache."""

    def __init__(self, parts: Seq2SeqParts) -> None:
        super().__init__(parts)
        stack = parts.decoder
        self.bias = stack.bias
        self.output, self.scale, self.output_bias = stack.output, stack.output_scale, stack.output_bias

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        seqlens_k: torch.Tensor,
        total_len: torch.Tensor,
        last_idx: torch.Tensor,
        cross_len: torch.Tensor,
        cross_readers: torch.Tensor,
        cross_places: torch.Tensor,
        past: list[torch.Tensor],
        cross: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Return `logits` float32 [batch * asked, vocab] of the positions `last_idx` int64 [batch, asked] of
        each row, then key and value of each layer.
        """
        state = StepState(seqlens_k, total_len, _pairs(past))
        if self.bias is not None:
            state.bias = self.bias(position_ids.to(torch.int32), _steps(state))
        source = Source(_pairs(cross), cross_len, cross_readers, cross_places)
        hidden = self.run(input_ids, position_ids, state, source)
        hidden = torch.gather(hidden, 1, last_idx.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        logits = self._logits(self.final_norm(hidden))
        return logits, *(tensor for pair in state.present for tensor in pair)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return [batch * asked, vocab] of [batch, asked, hidden]."""
        logits: torch.Tensor = self.output(hidden * self.scale if self.scale != 1.0 else hidden)
        if self.output_bias is not None:
            logits = logits + self.output_bias
        return logits.flatten(0, 1)


def _steps(state: StepState) -> torch.Tensor:
    """Return the positions of the cache in use: int32 [total_len], a length that only the run knows."""
    zero, one = torch.zeros((), dtype=torch.int32), torch.ones((), dtype=torch.int32)
    steps: torch.Tensor = torch.onnx.ops.symbolic(
        "Range",
        [zero, state.total_len.reshape(()), one],
        dtype=torch.int32,
        shape=(state.past[0][0].shape[2],),
        version=OPSET,
    )
    return steps


class Aligner(_Decoder):
    """The decoder up to the last layer that aligns, without its output layer: scores instead of logits."""

    def __init__(self, parts: Seq2SeqParts, heads: Sequence[Head]) -> None:
        super().__init__(parts)
        self.blocks = self.blocks[: max(layer for layer, _ in heads) + 1]
        self.crossing = [block.cross for block in parts.decoder.blocks]
        self.heads = list(heads)

    def forward(
        self, input_ids: torch.Tensor, cross_len: torch.Tensor, cross: list[torch.Tensor]
    ) -> torch.Tensor:
        """Return the scores [batch, len(heads), seq, source] before the softmax."""
        queries: list[torch.Tensor] = []
        handles = [
            cross.query.register_forward_hook(lambda _m, _i, out: queries.append(out))
            for cross in self.crossing
        ]
        try:
            self.run(input_ids, torch.arange(input_ids.shape[1]), None, Source(_pairs(cross), cross_len))
        finally:
            for handle in handles:
                handle.remove()
        return torch.cat([self._scores(queries[layer], cross, layer, head) for layer, head in self.heads], 1)

    def _scores(self, query: torch.Tensor, cross: list[torch.Tensor], layer: int, head: int) -> torch.Tensor:
        heads = self.crossing[layer].heads
        one = split_heads(query, heads)[:, head : head + 1]  # [batch, 1, seq, head_dim]
        key = cross[2 * layer][:, head : head + 1]
        return torch.matmul(one, key.transpose(-1, -2)) * heads.scale


def _pairs(tensors: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))


@dataclass(frozen=True, slots=True)
class Seq2SeqGraphs:
    """The files of an exported encoder-decoder."""

    encoder: Path
    decoder: Path
    aligner: Path | None = None

    def by_role(self) -> dict[str, Path]:
        """Return the files by what their graphs do."""
        graphs = {"encoder": self.encoder, "decoder": self.decoder, "aligner": self.aligner}
        return {role: path for role, path in graphs.items() if path is not None}

    def moved_to(self, folder: Path) -> Seq2SeqGraphs:
        """Return files of the same names in another folder."""
        return Seq2SeqGraphs(**{role: folder / path.name for role, path in self.by_role().items()})


def export_seq2seq(
    model: PreTrainedModel, folder: Path, *, alignment_heads: Sequence[Head] = ()
) -> Seq2SeqGraphs:
    """Write the graphs into `folder`; an aligner when there are heads that align. The model stays as it was.

    Raises `UnsupportedModel`.
    """
    parts = seq2seq_parts(model)
    encoder = _export_encoder(model, parts, folder / ENCODER_FILE)
    decoder = _export_decoder(parts, folder / DECODER_FILE)
    if not alignment_heads:
        return Seq2SeqGraphs(encoder, decoder, None)
    return Seq2SeqGraphs(encoder, decoder, _export_aligner(parts, alignment_heads, folder / ALIGNER_FILE))


def _export_encoder(model: PreTrainedModel, parts: Seq2SeqParts, path: Path) -> Path:
    names = cross_names(len(parts.cross))
    if parts.family == "whisper":
        columns = 2 * torch.export.Dim("frames", max=parts.max_source_positions)
        example = torch.randn(_BATCH, model.config.num_mel_bins, _MEL_COLUMNS)
        mel = Port("mel", example, {0: torch.export.Dim("batch"), 2: columns})
        return trace(SpeechEncoder(model, parts), [mel], names, path, family=parts.family)
    grid = {0: torch.export.Dim("batch"), 1: torch.export.Dim("source", max=parts.max_source_positions)}
    ones = torch.ones(_BATCH, _SOURCE, dtype=torch.long)
    inputs: list[Port | PortList] = [
        Port("input_ids", ones, grid),
        Port("attention_mask", ones.clone(), grid),
    ]
    return trace(TextEncoder(parts), inputs, names, path, family=parts.family)


def _export_decoder(parts: Seq2SeqParts, path: Path) -> Path:
    caches = [name.removeprefix("cross.") for name in cross_names(len(parts.cross))]
    row, source = {0: torch.export.Dim("batch")}, {0: torch.export.Dim("sources")}
    grid = {**row, 1: torch.export.Dim("seq")}
    past = (_BATCH, parts.heads.num_heads, _MAX_LEN, parts.heads.head_dim)
    cache_axes = {**row, 2: torch.export.Dim("max_len")}
    inputs: list[Port | PortList] = [
        Port("input_ids", torch.ones(_BATCH, _SEQ, dtype=torch.long), grid),
        Port("position_ids", torch.arange(_SEQ).expand(_BATCH, -1).contiguous(), grid),
        Port("seqlens_k", torch.full((_BATCH,), _SEQ - 1, dtype=torch.int32), row),
        Port("total_len", torch.tensor([_SEQ], dtype=torch.int32), {}),
        Port("last_idx", torch.full((_BATCH, _ASKED), _SEQ - 1), {**row, 1: torch.export.Dim("asked")}),
        Port("cross_len", torch.full((_SOURCES,), _SOURCE, dtype=torch.int32), source),
        Port(
            "cross_readers",
            torch.arange(_BATCH).reshape(_SOURCES, -1),
            {**source, 1: torch.export.Dim("width")},
        ),
        Port("cross_places", torch.arange(_BATCH), row),
        PortList([Port(f"past.{name}", torch.zeros(past), cache_axes) for name in caches]),
        _cross_ports(parts, len(parts.cross), source, num_sources=_SOURCES),
    ]
    outputs = ["logits", *(f"present.{name}" for name in caches)]
    return trace(SlotDecoder(parts), inputs, outputs, path, family=parts.family)


def _export_aligner(parts: Seq2SeqParts, heads: Sequence[Head], path: Path) -> Path:
    row = {0: torch.export.Dim("batch")}
    inputs: list[Port | PortList] = [
        Port("input_ids", torch.ones(_BATCH, _SEQ, dtype=torch.long), {**row, 1: torch.export.Dim("seq")}),
        Port("cross_len", torch.full((_BATCH,), _SOURCE, dtype=torch.int32), row),
        _cross_ports(parts, max(layer for layer, _ in heads) + 1, row, num_sources=_BATCH),
    ]
    return trace(Aligner(parts, heads), inputs, ["scores"], path, family=parts.family)


def _cross_ports(
    parts: Seq2SeqParts, num_layers: int, sources: dict[int, torch.export.Dim], *, num_sources: int
) -> PortList:
    shape = (num_sources, parts.heads.num_heads, _SOURCE, parts.heads.head_dim)
    axes = {**sources, 2: torch.export.Dim("source")}
    return PortList([Port(name, torch.randn(shape), axes) for name in cross_names(num_layers)])
