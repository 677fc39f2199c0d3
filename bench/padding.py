"""What padding costs: the service's own batcher, replayed on calls that follow one another."""

from __future__ import annotations

from collections.abc import Sequence

from aimass_encoder.batcher import Batcher
from aimass_encoder.config import EncoderConfig
from aimass_serving.session import CPU_PROVIDER


def padding_efficiency(lengths: Sequence[int], *, texts_a_call: int, calls: int) -> float:
    """Return tokens over padded tokens, when so many calls are in flight and each makes room for the next."""
    limits = EncoderConfig().batch_limits(CPU_PROVIDER, max_tokens=max(lengths))
    batcher: Batcher[int] = Batcher(limits)
    indices = range(len(lengths))
    waiting = [list(indices[i : i + texts_a_call]) for i in range(0, len(lengths), texts_a_call)]
    running: list[set[int]] = []
    num_tokens = num_padded_tokens = 0
    now_s = 0.0
    while waiting or running:
        while waiting and len(running) < calls:
            call = waiting.pop(0)
            batcher.submit([(index, lengths[index]) for index in call], now_s=now_s)
            running.append(set(call))
        batch = batcher.select()
        assert batch is not None, "a call that runs has texts that wait"
        batcher.take(batch)
        num_tokens, num_padded_tokens = num_tokens + batch.num_tokens, num_padded_tokens + batch.padded_tokens
        done, now_s = {entry.payload for entry in batch.entries}, now_s + 1
        running = [left for call in running if (left := call - done)]
    return num_tokens / num_padded_tokens
