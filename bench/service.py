"""A service as its users run it: a process of its own, reached over a port of this machine."""

from __future__ import annotations

import json
import subprocess
import sys

STOP_S = 30.0


class ServiceProcess:
    """`aimass serve <name>` on a free port, ready when constructed. Close it."""

    def __init__(self, name: str, *, store: str, model: str) -> None:
        options = ["--store", store, "--model", model, "--port", "0", "--drain-delay", "0", "--json"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"aimass_{name}", *options], stdout=subprocess.PIPE, text=True
        )
        stdout = self._process.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"the service ended with exit code {self._process.wait()} before it was ready")
        self.address: str = json.loads(line)["address"]

    def close(self) -> None:
        """Drain and stop the service."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
