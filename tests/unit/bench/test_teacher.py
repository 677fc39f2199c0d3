"""What quantisation costs, held to PyTorch's own definitions."""

import numpy as np
import pytest
import torch

from bench.teacher import Loss


def test_loss_is_what_pytorch_calls_cross_entropy_and_divergence() -> None:
    generator = np.random.default_rng(7)
    got, reference = (generator.normal(0, 3, (40, 11)).astype(np.float32) for _ in range(2))
    following = generator.integers(0, 11, 40)
    loss = Loss()
    for part in (slice(0, 25), slice(25, 40)):
        loss.add(got[part], reference[part], following[part])
    logits, expected = torch.from_numpy(got).double(), torch.from_numpy(reference).double()
    entropy = torch.nn.functional.cross_entropy(logits, torch.from_numpy(following))
    divergence = torch.nn.functional.kl_div(
        logits.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert loss.perplexity == pytest.approx(float(entropy.exp()))
    assert loss.mean_kl == pytest.approx(float(divergence))
    assert loss.top1_agreement == pytest.approx(
        float((logits.argmax(-1) == expected.argmax(-1)).double().mean())
    )


def test_a_model_loses_nothing_against_itself() -> None:
    logits = np.random.default_rng(8).normal(0, 3, (9, 5)).astype(np.float32)
    loss = Loss()
    loss.add(logits, logits, np.zeros(9, np.int64))
    assert loss.mean_kl == pytest.approx(0)
    assert loss.top1_agreement == 1
