"""Memory over a thousand mixed requests: it stays; and a service that keeps a little of each is caught.

Measured in a process of its own, where nothing but the service and its clients lives.
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from statistics import median

REQUESTS_IN_BLOCK, MAX_GROWTH = 100, 0.01


def growth_of(resident_bytes: list[int]) -> float:
    """Return the share by which memory grows in a thousand requests: the slope of Theil and Sen."""
    pairs = combinations(enumerate(resident_bytes), 2)
    slope = median((right - left) / (j - i) for (i, left), (j, right) in pairs)
    return slope * (1000 / REQUESTS_IN_BLOCK) / median(resident_bytes)


def test_memory_stays_over_a_thousand_requests_and_a_leak_is_caught(tiny_llama_store: Path) -> None:
    script = Path(__file__).with_name("memory_of_requests.py")
    run = subprocess.run(
        [sys.executable, str(script), str(tiny_llama_store)], capture_output=True, text=True, check=True
    )
    measured: dict[str, list[int]] = json.loads(run.stdout)
    assert len(measured["clean"]) == 1 + 1000 // REQUESTS_IN_BLOCK
    assert growth_of(measured["clean"]) < MAX_GROWTH, measured["clean"]
    assert growth_of(measured["keeping"]) > MAX_GROWTH, measured["keeping"]
