"""A service as its users run it: a process of its own, reached over a port of this machine."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

from aimass import HealthStatus, RpcError, health

START_S = 300.0
STOP_S = 30.0


class ServiceProcess:
    """`python -m aimass_<name>` on a free port, SERVING when constructed. Close it."""

    def __init__(self, name: str, *, store: str, model: str) -> None:
        self.address = f"127.0.0.1:{_free_port()}"
        port = self.address.rpartition(":")[2]
        command = [sys.executable, "-m", f"aimass_{name}", "--store", store, "--model", model]
        self._process = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", port], stdout=sys.stderr)
        try:
            self._wait_until_serving()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Drain and stop the service."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait_until_serving(self) -> None:
        give_up_at = time.monotonic() + START_S
        while time.monotonic() < give_up_at:
            if self._process.poll() is not None:
                raise RuntimeError(
                    f"the service ended with exit code {self._process.returncode} before it served"
                )
            try:
                if health(self.address) is HealthStatus.SERVING:
                    return
            except RpcError:
                pass  # nobody listens yet
            time.sleep(0.2)
        raise RuntimeError(f"the service did not serve within {START_S:.0f} s")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
