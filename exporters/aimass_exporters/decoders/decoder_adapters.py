"""The adapters of a decoder that stay beside its weights: terms for the graph, their part of a manifest.

Parity is measured for each of them as for the model itself, against PyTorch with that adapter merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from aimass.model.v1.manifest_pb2 import AdapterSpec
from transformers import PreTrainedModel

from aimass_exporters.decoders.decoder_parity import DecoderUnderTest
from aimass_exporters.graphs.adapted_products import AdapterTerms, LowRankTerm
from aimass_exporters.sources.adapter_set import NamedAdapter
from aimass_exporters.sources.lora_adapter import low_rank_layers, merged


def adapter_terms(model: PreTrainedModel, adapters: Sequence[NamedAdapter]) -> AdapterTerms | None:
    """Return what the adapters add to each layer, numbered from 1 in their order; None without adapters.

    Raises `InvalidCheckpoint` for one that does not fit the model.
    """
    by_module: dict[str, list[LowRankTerm]] = {}
    for number, named in enumerate(adapters, 1):
        for module, layer in low_rank_layers(model, named.adapter).items():
            term = LowRankTerm(number, layer.down.numpy(), layer.up.numpy())
            by_module.setdefault(module, []).append(term)
    return AdapterTerms(len(adapters), by_module) if adapters else None


def adapter_spec(named: NamedAdapter) -> AdapterSpec:
    """Return what the manifest says of an adapter, but for its parity."""
    factors = named.adapter.factors
    return AdapterSpec(
        name=named.name,
        rank=max(pair.down.shape[0] for pair in factors.values() if pair.down is not None),
        targets=sorted({module.rpartition(".")[2] for module in factors}),
        licence=named.licence,
    )


@contextmanager
def adapted(test: DecoderUnderTest, named: NamedAdapter, number: int) -> Iterator[DecoderUnderTest]:
    """Inside the block, compare the graph's adapter of this number with the model it was merged into."""
    with merged(test.reference.model, named.adapter):
        yield replace(test, adapter=number)
