"""How many threads PyTorch computes with while it is the reference of a measurement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Compute on one thread inside the block.

    PyTorch's threads spin while they wait for one another. When another process has a core, the graph's own
    threads included, that takes ten to twenty times longer than computing alone.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
