"""Writes the graph of an encoder in its precision: exported, fused, and with integer weights where asked for.

Must not know what the outputs mean.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from tokenizers import Encoding

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
    if precision is Precision.INT8:
        quantize_statically(model, typical())
    quantize_model(model, draft / GRAPH_FILE, _WEIGHT_BITS[precision], progress)
    return draft / GRAPH_FILE


def typical_feeds(
    text: TextTokenizer, texts: Sequence[str], *, max_tokens: int, in_pairs: bool = False
) -> list[Feeds]:
    """Return padded batches of texts, or of each text with the next, as a graph takes them.

    Raises `InvalidExportOption` when there are none.
    """
    inputs = list(pairwise(texts)) if in_pairs else list(texts)
    if not inputs:
        raise InvalidExportOption("--eval-text", expected="at least four paragraphs", got=str(len(texts)))
    text.tokenizer.enable_truncation(min(_MAX_TOKENS, max_tokens))
    encodings = text.tokenizer.encode_batch(inputs)
    text.tokenizer.no_truncation()
    by_length = sorted(encodings, key=len)
    batches = [by_length[i : i + _BATCH] for i in range(0, len(by_length), _BATCH)]
    return [_padded(batch, text.pad_token_id) for batch in batches]


def _padded(batch: Sequence[Encoding], pad_token_id: int) -> Feeds:
    shape = len(batch), max(map(len, batch))
    feeds = {
        "input_ids": np.full(shape, pad_token_id, np.int64),
        "attention_mask": np.zeros(shape, np.int64),
        "token_type_ids": np.zeros(shape, np.int64),
    }
    for row, encoding in enumerate(batch):
        length = len(encoding)
        feeds["input_ids"][row, :length] = encoding.ids
        feeds["attention_mask"][row, :length] = 1
        feeds["token_type_ids"][row, :length] = encoding.type_ids
    return feeds
