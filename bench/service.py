"""A service as its users run it: a process of its own, reached over a port of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping

STOP_S = 30.0


class ServiceProcess:
    """`aimass serve <name>` on a free port, ready when constructed. Close it.

    An empty `model` serves all that the store holds. `settings` are environment variables such as
    `AIMASS_GENERATION_MAX_KEPT_PREFIXES`.
    """

    def __init__(
        self, name: str, *, store: str, model: str, settings: Mapping[str, str] | None = None
    ) -> None:
        chosen = ["--model", model] if model else []
        options = ["--store", store, *chosen, "--port", "0", "--drain-delay", "0", "--json"]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"aimass_{name}", *options],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **(settings or {})},
        )
        stdout = self._process.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            raise RuntimeError(f"the service ended with exit code {code}:\n{self._log.read()[-2000:]}")
        self.address: str = json.loads(line)["address"]

    def close(self) -> None:
        """Drain and stop the service."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> ServiceProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
