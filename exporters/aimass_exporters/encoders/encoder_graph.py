"""Writes the graph of an encoder in its precision: exported, fused, and with integer weights where asked for.

Must not know what the outputs mean.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx

from aimass_exporters.bundles.text_tokenizer import TextTokenizer
from aimass_exporters.encoders.encoder_export import GRAPH_FILE
from aimass_exporters.errors import InvalidExportOption
from aimass_exporters.graphs.graph_quantization import WeightBits, quantize_model
from aimass_exporters.graphs.static_quantization import Feeds, quantize_statically
from aimass_exporters.precision import Precision
from aimass_exporters.progress import Progress

_WEIGHT_BITS = {Precision.INT8: WeightBits(body=8), Precision.INT4: WeightBits(body=4)}
_BATCH = 8
_MAX_TOKENS = 128


def write_encoder_graph(
    export: Callable[[Path], Path],
    draft: Path,
    *,
    precision: Precision,
    typical: Callable[[], Sequence[Feeds]],
    progress: Progress,
) -> Path:
    """Write the graph into `draft` and return its path.

    `export` writes the graph with floating-point weights into a folder. `typical` gives inputs that the
    ranges of 8-bit activations are taken from. Raises `QuantizationIncomplete` and what `export` raises.
    """
    progress.stage("export and fuse the graph")
    if not precision.is_quantized:
        return export(draft)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=draft.parent) as scratch:
        model = onnx.load(export(Path(scratch)))
    progress.stage("quantise the weights")
    float_weights = set[str]()
    if precision is Precision.INT8:
        float_weights = quantize_statically(model, typical()).float_weights
    target, bits = draft / GRAPH_FILE, _WEIGHT_BITS[precision]
    quantize_model(model, target, bits, progress, stays_float=float_weights.__contains__)
    return draft / GRAPH_FILE


def typical_feeds(
    text: TextTokenizer, texts: Sequence[str], *, max_tokens: int, in_pairs: bool = False
) -> list[Feeds]:
    """Return padded batches of texts, or of each text with the next, as a graph takes them.

    Raises `InvalidExportOption` when there are none.
    """
    encodings = text.encode_all(texts, max_tokens=min(_MAX_TOKENS, max_tokens), in_pairs=in_pairs)
    if not encodings:
        raise InvalidExportOption("--eval-text", expected="at least four paragraphs", got=str(len(texts)))
    by_length = sorted(encodings, key=len)
    return [text.padded(by_length[i : i + _BATCH]) for i in range(0, len(by_length), _BATCH)]
