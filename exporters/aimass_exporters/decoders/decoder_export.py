"""Turns a causal language model of transformers into one ONNX graph with an in-place key-value cache.

The graph's inputs and outputs are the contract with `aimass_decoding.runner`. Only the logits of the asked
positions are computed: the last real one of each row, or every one of a prompt. Must not know where the model
came from, nor how the bundle is packed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel

from aimass_exporters.errors import UnsupportedModel
from aimass_exporters.graphs.adapted_products import AdapterTerms, insert_adapters, marked_products
from aimass_exporters.graphs.attention import Trace, recording, slot_attention
from aimass_exporters.graphs.fusing import fuse_operators
from aimass_exporters.graphs.packing import pack_attention, rotary_cache
from aimass_exporters.graphs.single_ops import single_ops
from aimass_exporters.graphs.tracing import quiet_tracing

OPSET = 23
GRAPH_FILE = "decoder.onnx"
_TRACE_BATCH, _TRACE_SEQ, _TRACE_ASKED, _TRACE_MAX_LEN = 2, 5, 3, 32
_DYNAMIC_ROTARY = frozenset({"dynamic", "longrope"})


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The sizes of a decoder's cache and vocabulary."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int


def decoder_shape(config: PretrainedConfig) -> DecoderShape:
    """Read the sizes from a model's configuration. Raises `UnsupportedModel` when it has none of them."""
    num_heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    max_positions = getattr(config, "max_position_embeddings", None)
    if max_positions is None:
        raise UnsupportedModel(config.model_type, because="its configuration states no longest sequence")
    return DecoderShape(
        num_layers=config.num_hidden_layers,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or num_heads,
        head_dim=head_dim,
        vocab_size=config.vocab_size,
        max_positions=max_positions,
    )


class DecoderGraph(torch.nn.Module):
    """The model as the graph sees it: flat tensors in, the asked positions' logits and the present cache
    out.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.max_positions = decoder_shape(model.config).max_positions

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        seqlens_k: torch.Tensor,
        total_len: torch.Tensor,
        last_idx: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Return `logits` float32 [batch * asked, vocab] of the positions `last_idx` int64 [batch, asked] of
        each row, then key and value of each layer.
        """
        pairs = list(zip(past[::2], past[1::2], strict=True))
        trace = Trace(pairs, seqlens_k, total_len, self.max_positions, self.model.config.model_type)
        with recording(trace), _asked_positions(self.model, last_idx):
            output = self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False)
        self._check_complete(trace)
        present = [tensor for layer in sorted(trace.present) for tensor in trace.present[layer]]
        return output.logits.flatten(0, 1).float(), *present

    def _check_complete(self, trace: Trace) -> None:
        if len(trace.present) != len(trace.past):
            because = (
                f"{len(trace.present)} of its {len(trace.past)} layers attend through"
                " the attention interface of transformers; all must"
            )
            raise UnsupportedModel(trace.family, because=because)


@contextmanager
def _asked_positions(model: PreTrainedModel, last_idx: torch.Tensor) -> Iterator[None]:
    """Let the model's output layer see the asked positions of each row: its own scaling of the logits stays
    in place.
    """

    def gather(_module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        hidden = inputs[0]  # [batch, seq, hidden]
        return torch.gather(hidden, 1, last_idx.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))

    handle = model.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


def export_decoder(model: PreTrainedModel, folder: Path, adapters: AdapterTerms | None = None) -> Path:
    """Write `decoder.onnx` and its external data into `folder`, in the element type of the model's weights.

    With adapters the graph takes the number of one for each row. The model is left as it was. Raises
    `UnsupportedModel` when it cannot be traced, or uses what the graph cannot say.
    """
    _check_config(model)
    wrapped, inputs = DecoderGraph(model).eval(), _example_inputs(model)
    with slot_attention(model), torch.no_grad(), quiet_tracing():
        wrapped(*inputs)  # a dry run on zeros: finds what is unsupported before the long trace
        with single_ops(model), marked_products(model, adapters):
            program = _trace(wrapped, inputs)
    pack_attention(program.model, rotary_cache(model, decoder_shape(model.config).max_positions))
    fuse_operators(program.model)
    if adapters is not None:
        _insert(adapters, program, model.config.model_type)
    path = folder / GRAPH_FILE
    program.save(str(path), external_data=True)
    return path


def _insert(adapters: AdapterTerms, program: torch.onnx.ONNXProgram, family: str) -> None:
    missed = sorted(adapters.by_module.keys() - insert_adapters(program.model, adapters))
    if missed:
        because = f"it computes the product of {missed[0]} past that layer, where no adapter can be added"
        raise UnsupportedModel(family, because=because)


def _check_config(model: PreTrainedModel) -> None:
    family = model.config.model_type
    if not model.can_generate() or model.config.is_encoder_decoder or model.get_output_embeddings() is None:
        raise UnsupportedModel(family, because="it is not a decoder-only language model")
    scaling = getattr(model.config, "rope_scaling", None) or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in _DYNAMIC_ROTARY:
        raise UnsupportedModel(
            family, because=f"its rotary scaling ({kind}) depends on the length of the text"
        )


def _example_inputs(model: PreTrainedModel) -> tuple[torch.Tensor | list[torch.Tensor], ...]:
    shape, batch, seq = decoder_shape(model.config), _TRACE_BATCH, _TRACE_SEQ
    cache = (batch, shape.num_kv_heads, _TRACE_MAX_LEN, shape.head_dim)
    return (
        torch.ones(batch, seq, dtype=torch.long),
        torch.arange(seq).expand(batch, -1).contiguous(),
        torch.full((batch,), seq - 1, dtype=torch.int32),
        torch.tensor([seq], dtype=torch.int32),
        torch.full((batch, _TRACE_ASKED), seq - 1),
        [torch.zeros(cache, dtype=model.dtype) for _ in range(2 * shape.num_layers)],
    )


def _trace(
    wrapped: DecoderGraph, inputs: tuple[torch.Tensor | list[torch.Tensor], ...]
) -> torch.onnx.ONNXProgram:
    past = inputs[-1]
    layers = range(len(past) // 2)
    names = [f"{i}.{kind}" for i in layers for kind in ("key", "value")]
    batch, seq, max_len = torch.export.Dim("batch"), torch.export.Dim("seq"), torch.export.Dim("max_len")
    grid, asked = {0: batch, 1: seq}, {0: batch, 1: torch.export.Dim("asked")}
    family = wrapped.model.config.model_type
    try:
        program = torch.onnx.export(
            wrapped,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=[
                "input_ids",
                "position_ids",
                "seqlens_k",
                "total_len",
                "last_idx",
                *(f"past.{n}" for n in names),
            ],
            output_names=["logits", *(f"present.{n}" for n in names)],
            dynamic_shapes=(grid, grid, {0: batch}, None, asked, [{0: batch, 2: max_len} for _ in past]),
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UnsupportedModel(family, because=f"PyTorch could not trace it: {_last_line(error)}") from error
    assert program is not None
    return program


def _last_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[0] if lines else type(cause).__name__
