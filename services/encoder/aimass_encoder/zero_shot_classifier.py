"""Texts and the caller's own labels in, scores out, by a classifier of entailment. Must not know the wire."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from aimass_serving.errors import AimassError, InvalidField, WrongTask
from numpy.typing import NDArray

from aimass_encoder.classification import ClassifiedText, ClassifyReply
from aimass_encoder.labels import ProblemType
from aimass_encoder.text_classifier import TextClassifier
from aimass_encoder.text_encoder import Encoded, TextCall
from aimass_encoder.zero_shot import EntailmentLogits, ZeroShotRequest, label_scores


async def classify_zero_shot(classifier: TextClassifier, request: ZeroShotRequest) -> ClassifyReply:
    """Return the labels of each text, in order; a bad text has an error in its place.

    Raises `WrongTask` for a classifier of something else, `InvalidField` for too many texts or labels,
    `Overloaded`, `DeadlineExceeded`, `Draining`.
    """
    places = EntailmentLogits.of(classifier.spec.labels)
    if places is None:
        known = ", ".join(classifier.spec.labels[:5])
        expected = "zero-shot classification (one label `entailment`)"
        raise WrongTask(classifier.model, expected=expected, got=f"a classifier of {known}")
    _check_size(classifier, request)
    num_labels = len(request.labels)
    call = TextCall(
        request.pairs,
        lambda index: f"texts[{index // num_labels}]",
        "texts",
        truncation=request.options.truncation,
        deadline_s=request.deadline_s,
        part_fields=("", ""),
    )
    encoded = await classifier.read(call, "classify_zero_shot")
    groups = [encoded.results[i : i + num_labels] for i in range(0, len(encoded.results), num_labels)]
    is_multi = request.options.multi_label
    return ClassifyReply(
        results=[_classified(group, request, places) for group in groups],
        problem_type=ProblemType.MULTI_LABEL if is_multi else ProblemType.SINGLE_LABEL,
        num_tokens=encoded.num_tokens,
        timings=encoded.timings,
    )


def _check_size(classifier: TextClassifier, request: ZeroShotRequest) -> None:
    largest = classifier.limits.max_batch_items
    pairs = len(request.texts) * len(request.labels)
    if pairs > largest:
        field = "texts" if len(request.texts) > len(request.labels) else "labels"
        raise InvalidField(field, expected=f"texts times labels at most {largest}", got=pairs)


def _classified(
    group: Sequence[Encoded[NDArray[np.float32]] | AimassError],
    request: ZeroShotRequest,
    places: EntailmentLogits,
) -> ClassifiedText | AimassError:
    """Return the labels of one text, whose pairs are `group`."""
    read = []
    for item in group:
        if isinstance(item, AimassError):
            return item
        read.append(item)
    return ClassifiedText(
        label_scores(np.stack([item.reading for item in read]), request, places),
        num_tokens=sum(len(item.text.token_ids) for item in read),
        num_truncated_tokens=sum(item.text.num_truncated_tokens for item in read),
    )
