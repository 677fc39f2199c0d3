"""The sampler keeps the tokens that transformers' own logits processors keep, with the same probabilities."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from aimass_decoding.request import SamplingParams, SequenceRequest
from aimass_decoding.sampler import SamplingState, adjust, nucleus
from numpy.typing import NDArray
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

VOCAB = 5000


def processors(how: SamplingParams) -> LogitsProcessorList:
    """In the order in which `generate` applies them."""
    chain: list[LogitsProcessor] = []
    if how.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(how.repetition_penalty))
    if how.logit_bias:
        chain.append(SequenceBiasLogitsProcessor([[[i], bias] for i, bias in how.logit_bias.items()]))
    chain.append(TemperatureLogitsWarper(how.temperature))
    if how.top_k:
        chain.append(TopKLogitsWarper(how.top_k))
    if how.top_p < 1:
        chain.append(TopPLogitsWarper(how.top_p))
    if how.min_p:
        chain.append(MinPLogitsWarper(how.min_p))
    if how.typical_p < 1:
        chain.append(TypicalLogitsWarper(how.typical_p))
    return LogitsProcessorList(chain)


def expected_probabilities(
    logits: NDArray[np.float32], seen: NDArray[np.int64], how: SamplingParams
) -> NDArray[np.float64]:
    seen_ids = cast("torch.LongTensor", torch.from_numpy(seen)[None])
    scores = processors(how)(seen_ids, cast("torch.FloatTensor", torch.from_numpy(logits.copy())[None]))
    return torch.softmax(scores[0].double(), dim=-1).numpy()


def probabilities(
    logits: NDArray[np.float32], seen: NDArray[np.int64], how: SamplingParams
) -> NDArray[np.float64]:
    state = SamplingState(SequenceRequest("oracle", seen, 1, sampling=how))
    row = adjust(logits, state.choice(0))
    ids, weights = nucleus(row, how)
    result = np.zeros(len(logits))
    result[slice(None) if ids is None else ids] = weights / weights.sum(dtype=np.float64)
    return result


@pytest.mark.parametrize("spread", [0.5, 3.0, 8.0])
@pytest.mark.parametrize(
    "how",
    [
        SamplingParams(temperature=0.7, top_k=1),
        SamplingParams(temperature=1.0, top_k=50),
        SamplingParams(temperature=0.8, top_k=4999),
        SamplingParams(temperature=1.0, top_p=0.9),
        SamplingParams(temperature=1.7, top_p=0.999),
        SamplingParams(temperature=0.2, top_p=0.1),
        SamplingParams(temperature=1.0, top_p=0.95, min_p=0.05),
        SamplingParams(temperature=0.9, top_k=40, top_p=0.8, min_p=0.02),
        SamplingParams(temperature=1.1, top_p=0.9, repetition_penalty=1.3),
        SamplingParams(temperature=1.0, top_k=20, repetition_penalty=0.8),
        SamplingParams(temperature=1.0, typical_p=0.9),
        SamplingParams(temperature=0.8, typical_p=0.2),
        SamplingParams(temperature=1.2, top_k=100, top_p=0.95, min_p=0.01, typical_p=0.7),
        SamplingParams(temperature=1.0, top_k=50, repetition_penalty=1.2, logit_bias={7: 8.5, 4000: -3.0}),
    ],
)
def test_the_filtered_distribution_is_that_of_transformers(how: SamplingParams, spread: float) -> None:
    generator = np.random.default_rng(3)
    for _ in range(5):
        logits = generator.normal(0, spread, VOCAB).astype(np.float32)
        seen = generator.integers(0, VOCAB, 60)
        # 1e-6: both work in single precision, summed in another order.
        np.testing.assert_allclose(
            probabilities(logits, seen, how), expected_probabilities(logits, seen, how), atol=1e-6
        )
