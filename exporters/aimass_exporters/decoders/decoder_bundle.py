"""Fills a draft with a decoder: graph, tokenizer, golden outputs; measures it and describes it for the
manifest.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from aimass.model.v1.manifest_pb2 import AdapterSpec, DecoderSpec, ModelManifest, ParityRecord
from numpy.typing import NDArray
from transformers import PreTrainedModel

from aimass_exporters.bundles.bundle_text import write_tokenizer
from aimass_exporters.bundles.manifest_writer import describe_graph
from aimass_exporters.bundles.parity import ParityReport
from aimass_exporters.decoders.causal_lm import CausalLM
from aimass_exporters.decoders.decoder_adapters import adapted, adapter_spec, adapter_terms
from aimass_exporters.decoders.decoder_export import GRAPH_FILE, decoder_shape, export_decoder
from aimass_exporters.decoders.decoder_parity import (
    DecoderUnderTest,
    golden_arrays,
    measure_held_out,
    measure_logits,
)
from aimass_exporters.decoders.random_sequences import random_sequences
from aimass_exporters.graphs.adapted_products import AdapterTerms, is_adapter_factor
from aimass_exporters.graphs.graph_quantization import WeightBits, quantize_model
from aimass_exporters.graphs.norm_smoothing import smooth_norms
from aimass_exporters.precision import DECODER_BOUNDS, Precision
from aimass_exporters.progress import Progress
from aimass_exporters.sources.adapter_set import NamedAdapter

GOLDEN_FILE = "golden.npz"
_WEIGHT_BITS = {Precision.INT8: WeightBits(body=8), Precision.INT4: WeightBits(body=4)}


def build_decoder(
    lm: CausalLM,
    draft: Path,
    *,
    precision: Precision,
    held_out: Callable[[], list[str]],
    progress: Progress,
    adapters: Sequence[NamedAdapter] = (),
) -> ModelManifest:
    """Write the files of a decoder bundle into `draft`; return the part of the manifest that speaks of them.

    `held_out` gives text for precisions that are judged on it; `adapters` stay beside the weights. Raises
    `ParityFailed`, `UnsupportedModel`, and `InvalidCheckpoint` for an adapter that does not fit.
    """
    graph = _write_graph(lm.model, draft, precision, progress, adapter_terms(lm.model, adapters))
    described = ModelManifest(decoder=_spec(lm, precision), tokenizer=write_tokenizer(lm.text, draft))
    described.graphs.append(describe_graph("decoder", graph))
    test = DecoderUnderTest.open(graph, described.decoder, lm, num_adapters=len(adapters))
    described.parity.CopyFrom(_parity(test, precision, held_out, progress, ParityReport()))
    golden = _golden(test, precision)
    if adapters:
        described.adapters.extend(map(adapter_spec, adapters))
        golden |= _prove_adapters(test, adapters, described.adapters, precision, held_out, progress)
    np.savez(draft / GOLDEN_FILE, allow_pickle=False, **golden)
    return described


def _prove_adapters(
    test: DecoderUnderTest,
    adapters: Sequence[NamedAdapter],
    specs: Iterable[AdapterSpec],
    precision: Precision,
    held_out: Callable[[], list[str]],
    progress: Progress,
) -> dict[str, NDArray[Any]]:
    """Measure each adapter and record it in its spec; return what the golden prompt gives with each."""
    goldens = []
    for number, (named, spec) in enumerate(zip(adapters, specs, strict=True), 1):
        report = ParityReport(subject=f"adapter {named.name}: ")
        with adapted(test, named, number) as one:
            spec.parity.CopyFrom(_parity(one, precision, held_out, progress, report))
        goldens.append(_golden(one, precision))
    return {
        "adapter_logits": np.stack([golden["logits"] for golden in goldens]),
        "adapter_tolerances": np.stack([golden["tolerance"] for golden in goldens]),
    }


def _write_graph(
    model: PreTrainedModel,
    draft: Path,
    precision: Precision,
    progress: Progress,
    adapters: AdapterTerms | None,
) -> Path:
    progress.stage("trace the model into a graph")
    if precision is Precision.FP16:
        return export_decoder(copy.deepcopy(model).half(), draft, adapters)
    if not precision.is_quantized:
        return export_decoder(model, draft, adapters)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=draft.parent) as scratch:
        floating = export_decoder(model, Path(scratch), adapters)
        progress.stage("quantise the weights")
        sequences = random_sequences(decoder_shape(model.config), has_adapters=adapters is not None)
        smooth = smooth_norms(floating, sequences)
        target, bits = draft / GRAPH_FILE, _WEIGHT_BITS[precision]
        quantize_model(smooth, target, bits, progress, stays_float=is_adapter_factor)
    return draft / GRAPH_FILE


def _spec(lm: CausalLM, precision: Precision) -> DecoderSpec:
    shape = decoder_shape(lm.model.config)
    return DecoderSpec(
        num_layers=shape.num_layers,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        max_positions=shape.max_positions,
        kv_dtype="float16" if precision is Precision.FP16 else "float",
        eos_token_ids=lm.eos_token_ids,
        defaults=lm.generation_defaults(shape.max_positions),
    )


def _parity(
    test: DecoderUnderTest,
    precision: Precision,
    held_out: Callable[[], list[str]],
    progress: Progress,
    report: ParityReport,
) -> ParityRecord:
    bounds = DECODER_BOUNDS[precision]
    measure_logits(test, bounds, report, progress)
    if precision.is_quantized:
        measure_held_out(test, held_out(), bounds, report, progress)
    return report.record()


def _golden(test: DecoderUnderTest, precision: Precision) -> dict[str, NDArray[Any]]:
    return golden_arrays(test, DECODER_BOUNDS[precision])
