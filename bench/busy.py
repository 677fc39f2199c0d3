"""Another process that keeps one core busy, as a neighbour would. It always ends by itself."""

from __future__ import annotations

import subprocess
import sys

_SPIN = "import sys, time\nend = time.monotonic() + float(sys.argv[1])\nwhile time.monotonic() < end: pass"


class BusyCore:
    """Context manager: one core is busy while the block runs, at most `max_s`."""

    def __init__(self, max_s: float) -> None:
        self._max_s = max_s

    def __enter__(self) -> BusyCore:
        self._process = subprocess.Popen([sys.executable, "-c", _SPIN, str(self._max_s)])
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
