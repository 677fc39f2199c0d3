"""Which of a window's failed outputs is taken when none passes the rules."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from aimass_speech.window import Reading, WindowRequest
from aimass_speech.window_job import FailedAttempt, WindowJob


@pytest.mark.parametrize(
    ("failures", "taken"),
    [
        ([(-1.1, 1.0), (-3.0, 1.0), (-2.0, 1.0)], 0),
        ([(-0.2, 9.0), (-3.0, 1.0), (-2.0, 1.0)], 2),
        ([(-1.5, 9.0), (-0.3, 5.0)], 1),
    ],
    ids=["the most probable", "not one that repeats itself", "unless all do"],
)
async def test_the_most_probable_output_that_does_not_repeat_itself_is_least_bad(
    failures: list[tuple[float, float]], taken: int
) -> None:
    done = asyncio.get_running_loop().create_future()
    job = WindowJob(WindowRequest(samples=np.zeros(1, np.float32)), 0, done, submitted_ns=0)
    readings = [[Reading((number,), (logprob,), logprob)] for number, (logprob, _) in enumerate(failures)]
    job.failures = [FailedAttempt(one, ratio) for one, (_, ratio) in zip(readings, failures, strict=True)]
    assert job.least_bad() is readings[taken]
