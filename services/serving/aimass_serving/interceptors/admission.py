"""Refuses work that cannot be done: while draining, after its deadline, above the limit of calls at once."""

from __future__ import annotations

import asyncio
import time

from aimass_serving.call import Call
from aimass_serving.config import AdmissionConfig
from aimass_serving.errors import DeadlineExceeded, Draining, Overloaded
from aimass_serving.interceptors.layering import Proceed, ServicerContext


class Admission:
    """Layer that counts calls in progress. Owned by the event loop."""

    def __init__(self, config: AdmissionConfig) -> None:
        self._config = config
        self._is_draining = False
        self._num_running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_running(self) -> int:
        """Calls in progress."""
        return self._num_running

    def refuse_new(self) -> None:
        """Answer every further call with `Draining`."""
        self._is_draining = True

    async def wait_idle(self, max_wait_s: float) -> bool:
        """Wait until no call is in progress; return False when that took longer than `max_wait_s`."""
        try:
            async with asyncio.timeout(max_wait_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def __call__(self, call: Call, context: ServicerContext, proceed: Proceed) -> None:
        self._check(call)
        self._num_running += 1
        self._idle.clear()
        try:
            await proceed()
        finally:
            self._num_running -= 1
            if not self._num_running:
                self._idle.set()

    def _check(self, call: Call) -> None:
        if self._is_draining:
            raise Draining
        if call.deadline_s is not None and time.monotonic() >= call.deadline_s:
            raise DeadlineExceeded(phase="admission")
        if self._num_running >= self._config.max_concurrent_requests:
            limit = self._config.max_concurrent_requests
            raise Overloaded(
                retry_after_s=self._config.overload_retry_after_s,
                detail=f"{limit} calls are in progress, the limit",
            )
