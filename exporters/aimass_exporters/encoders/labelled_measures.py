"""Measures a head on labelled texts it was not trained on, and calibrates its scores on them.

The graph is judged beside PyTorch: what an export may lose is stated here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from aimass.model.v1.manifest_pb2 import PROBLEM_TYPE_SINGLE_LABEL, Calibration
from numpy.typing import NDArray
from tokenizers import Encoding

from aimass_exporters.bundles.parity import ParityReport
from aimass_exporters.encoders.calibration import calibrate
from aimass_exporters.encoders.head_parity import BATCH, HeadUnderTest
from aimass_exporters.errors import InvalidCheckpoint
from aimass_exporters.graphs.torch_threads import one_torch_thread
from aimass_exporters.progress import Progress
from aimass_exporters.sources.labelled import LabelledWords, labelled_texts, labelled_words

MAX_LOSS = 0.01
"""What the graph may be worse than PyTorch: of the share of right labels, and of F1."""
_NUM_COMPARED, _MAX_TOKENS = 200, 256

Span = tuple[int, int, str]


def calibrated(
    test: HeadUnderTest, folder: Path, report: ParityReport, progress: Progress
) -> Calibration | None:
    """Calibrate a classifier of one label on its folder's labelled texts; None when it carries none.

    Adds the share of right labels to `report`. Raises `InvalidCheckpoint` for labels the model does not have.
    """
    spec = test.reference.spec
    is_single = spec.problem_type == PROBLEM_TYPE_SINGLE_LABEL and not test.reference.kind.reads_pairs
    texts = labelled_texts(folder) if is_single else []
    if not texts:
        return None
    progress.stage("calibrate on labelled texts")
    names = list(spec.labels)
    if unknown := {text.label for text in texts} - set(names):
        raise InvalidCheckpoint(folder, detail=f"labelled texts have unknown labels: {sorted(unknown)}")
    labels = np.array([names.index(text.label) for text in texts])
    encodings = test.tokenize([text.text for text in texts], max_tokens=_MAX_TOKENS)
    logits = np.stack(_graph_logits(test, encodings))
    _compare(test, encodings, logits, labels, report)
    return calibrate(logits, labels)


def _compare(
    test: HeadUnderTest,
    encodings: Sequence[Encoding],
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    report: ParityReport,
) -> None:
    some = slice(0, _NUM_COMPARED)
    theirs = np.stack(_reference_logits(test, encodings[some]))
    ours, reference = (float((v.argmax(1) == labels[some]).mean()) for v in (logits[some], theirs))
    report.at_least("labelled_accuracy", ours, bound=reference - MAX_LOSS, num_samples=len(encodings[some]))


def measure_entities(test: HeadUnderTest, folder: Path, report: ParityReport, progress: Progress) -> None:
    """Add the F1 of whole entities on the folder's labelled words to `report`, if it carries any."""
    if not (words := labelled_words(folder)):
        return
    progress.stage("find entities in labelled texts")
    encodings = _encoded_words(test, words)
    ours = _f1(test, words, encodings, _graph_logits(test, encodings))
    theirs = _f1(test, words, encodings, _reference_logits(test, encodings))
    report.at_least("labelled_f1", ours, bound=theirs - MAX_LOSS, num_samples=len(words))


def _encoded_words(test: HeadUnderTest, words: Sequence[LabelledWords]) -> list[Encoding]:
    tokenizer = test.reference.text.tokenizer
    tokenizer.enable_truncation(min(test.reference.spec.max_tokens, _MAX_TOKENS))
    encodings: list[Encoding] = tokenizer.encode_batch(
        [list(example.words) for example in words], is_pretokenized=True
    )
    tokenizer.no_truncation()
    return encodings


def _graph_logits(test: HeadUnderTest, encodings: Sequence[Encoding]) -> list[NDArray[np.float32]]:
    """Return the graph's logits of each input, in batches of like lengths."""
    order = sorted(range(len(encodings)), key=lambda place: len(encodings[place].ids))
    found: dict[int, NDArray[np.float32]] = {}
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        logits = test.graph_logits([encodings[place] for place in places])
        found |= {place: own["logits"].copy() for place, own in zip(places, logits, strict=True)}
    return [found[place] for place in range(len(encodings))]


def _reference_logits(test: HeadUnderTest, encodings: Sequence[Encoding]) -> list[NDArray[np.float32]]:
    with one_torch_thread():
        return [test.reference_logits(encoding)["logits"] for encoding in encodings]


def _f1(
    test: HeadUnderTest,
    words: Sequence[LabelledWords],
    encodings: Sequence[Encoding],
    logits: Sequence[NDArray[np.float32]],
) -> float:
    """Return the F1 of entities that are right in place and label; a word has its first token's label."""
    names, hits, found, true = list(test.reference.spec.labels), 0, 0, 0
    for example, encoding, own in zip(words, encodings, logits, strict=True):
        tags = [names[best] for best in own.argmax(-1)[list(_first_tokens(encoding))].tolist()]
        ours, theirs = set(spans_of(tags)), set(spans_of(example.labels))
        hits, found, true = hits + len(ours & theirs), found + len(ours), true + len(theirs)
    return 2 * hits / max(1, found + true)


def _first_tokens(encoding: Encoding) -> Iterator[int]:
    before = None
    for place, word in enumerate(encoding.word_ids):
        if word is not None and word != before:
            yield place
        before = word


def spans_of(tags: Sequence[str]) -> Iterator[Span]:
    """Yield the entities of B- and I- labels: first word, word after the last, label."""
    start, label = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        mark, _, kind = tag.partition("-")
        if label and (mark != "I" or kind != label):
            yield start, place, label
            label = ""
        if not label and mark in ("B", "I"):
            start, label = place, kind
