"""A token classifier of recurrent layers: embeddings, GRUs that read both ways, one linear layer.

In PyTorch it is the reference that parity is measured against; as a graph each layer is one GRU node that
reads every row of a batch to its own end. Must not know where the weights come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput

from aimass_exporters.encoders.encoder_export import GRAPH_FILE
from aimass_exporters.graphs.tracing import OPSET, Port, trace
from aimass_exporters.precision import Precision

GRAPH_PRECISIONS = (Precision.FP32,)
"""No execution provider has a GRU with integer weights, and those are most of the products. An fp16 GRU ends
the process on the CPU: ONNX Runtime 1.31 crashes while it optimises the graph.
"""
_GRU_VERSION = min(OPSET, 22)
_BOTH_WAYS = 2


class BiGruConfig(PretrainedConfig):
    """Sizes of a `BiGruTagger`, and its labels."""

    model_type = "bigru-crf"

    def __init__(
        self,
        *,
        vocab_size: int = 2,
        embedding_size: int = 8,
        hidden_size: int = 8,
        num_hidden_layers: int = 2,
        labels: Sequence[str] = ("B", "I"),
    ) -> None:
        super().__init__(id2label=dict(enumerate(labels)))
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers


class BiGruTagger(PreTrainedModel):
    """Logits of each token, from what stands before and after it. Rows are padded on the right."""

    config_class = BiGruConfig

    def __init__(self, config: BiGruConfig) -> None:
        super().__init__(config)
        self.embeddings = torch.nn.Embedding(config.vocab_size, config.embedding_size)
        self.gru = torch.nn.GRU(
            config.embedding_size,
            config.hidden_size,
            num_layers=config.num_hidden_layers,
            bidirectional=True,
            batch_first=True,
        )
        self.classifier = torch.nn.Linear(_BOTH_WAYS * config.hidden_size, config.num_labels)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> TokenClassifierOutput:
        """Return logits [batch, seq, num_labels]."""
        packed = pack_padded_sequence(
            self.embeddings(input_ids), attention_mask.sum(dim=1), batch_first=True, enforce_sorted=False
        )
        read, _ = self.gru(packed)
        hidden, _ = pad_packed_sequence(read, batch_first=True, total_length=input_ids.shape[1])
        return TokenClassifierOutput(logits=self.classifier(hidden))


def reordered_gates(weights: torch.Tensor) -> torch.Tensor:
    """Return weights [3 * hidden, ...] with the first two gates swapped.

    The operator GRU has update before reset, PyTorch reset before update.
    """
    first, second, last = weights.chunk(3)
    return torch.cat([second, first, last])


class _TaggerGraph(torch.nn.Module):
    """The tagger as it is traced."""

    def __init__(self, tagger: BiGruTagger) -> None:
        super().__init__()
        self.tagger = tagger
        self.hidden_size = tagger.gru.hidden_size
        self.layers = torch.nn.ModuleList(
            _GruNode(tagger.gru, layer) for layer in range(tagger.gru.num_layers)
        )

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        lengths = attention_mask.sum(dim=1, dtype=torch.int32)  # [batch]
        hidden = self.tagger.embeddings(input_ids).transpose(0, 1)  # [seq, batch, embedding_size]
        for layer in self.layers:
            hidden = layer(hidden, lengths)
        logits: torch.Tensor = self.tagger.classifier(hidden.transpose(0, 1))
        return logits


class _GruNode(torch.nn.Module):
    """One layer as one node. Source: ONNX GRU, with `linear_before_reset` as PyTorch has it."""

    inputs: torch.Tensor
    recurrent: torch.Tensor
    biases: torch.Tensor

    def __init__(self, gru: torch.nn.GRU, layer: int) -> None:
        super().__init__()
        self.hidden_size = gru.hidden_size
        ways = [f"_l{layer}", f"_l{layer}_reverse"]

        def of(kind: str) -> torch.Tensor:
            return torch.stack([reordered_gates(getattr(gru, kind + way).detach()) for way in ways])

        self.register_buffer("inputs", of("weight_ih"))
        self.register_buffer("recurrent", of("weight_hh"))
        self.register_buffer("biases", torch.cat([of("bias_ih"), of("bias_hh")], dim=1))

    def forward(self, hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return [seq, batch, 2 * hidden_size]."""
        seq, batch, _ = hidden.shape
        read = torch.onnx.ops.symbolic(
            "GRU",
            [hidden, self.inputs, self.recurrent, self.biases, lengths],
            {"direction": "bidirectional", "hidden_size": self.hidden_size, "linear_before_reset": 1},
            dtype=hidden.dtype,
            shape=(seq, _BOTH_WAYS, batch, self.hidden_size),
            version=_GRU_VERSION,
        )
        return read.transpose(1, 2).flatten(2)


def export_bigru(tagger: BiGruTagger, folder: Path) -> Path:
    """Write the graph into `folder`, fp32; return its path. Raises `UnsupportedModel`."""
    grid = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")}
    ones = torch.ones(2, 3, dtype=torch.long)
    return trace(
        _TaggerGraph(tagger),
        [Port("input_ids", ones, grid), Port("attention_mask", ones.clone(), grid)],
        ["logits"],
        folder / GRAPH_FILE,
        family=BiGruConfig.model_type,
    )
