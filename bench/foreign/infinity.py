"""infinity's server, over HTTP: calls of as many texts as ours get, as many of them in flight.

One server an engine, started when it is first asked for. Vectors come packed, not as lists of numbers.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

import numpy as np

from bench.measurement import Outcome
from bench.text_sets import CALLS_IN_FLIGHT, TextSets, Vectors, in_calls

_START_S, _STOP_S = 120.0, 30.0
_NO_TELEMETRY = {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}


class Infinity:
    """The server on its PyTorch or its ONNX engine, with the threads and batches that it takes by itself."""

    def __init__(self, *, folders: Mapping[str, str], texts: Mapping[str, Any]) -> None:
        self._folders, self._texts = folders, TextSets(**texts)
        self._servers: dict[str, _Server] = {}
        self._pool = ThreadPoolExecutor(CALLS_IN_FLIGHT)

    def run(self, scenario: str, *, engine: str) -> Outcome:
        server = self._server(engine)

        def encode(texts: Sequence[str]) -> Vectors:
            return np.concatenate(list(self._pool.map(server.embed, in_calls(texts))))

        return self._texts.timed(scenario, encode)

    def close(self) -> None:
        self._pool.shutdown()
        for server in self._servers.values():
            server.close()

    def _server(self, engine: str) -> _Server:
        if engine not in self._servers:
            self._servers[engine] = _Server(self._folders[engine], engine)
        return self._servers[engine]


class _Server:
    """A server process, ready when constructed. Close it."""

    def __init__(self, folder: str, engine: str) -> None:
        self._port = _free_port()
        place = ["--host", "127.0.0.1", "--port", str(self._port)]
        # Named from inside its folder: a path with a root is joined wrongly on the way to the ONNX file.
        model = ["--model-id", ".", "--served-model-name", "bench", "--pooling-method", "mean"]
        how = ["--engine", engine, "--device", "cpu", "--no-model-warmup"]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the process
        self._cache = tempfile.TemporaryDirectory(prefix="aimass-bench-")  # its optimised graph
        self._process = subprocess.Popen(
            [sys.executable, "-m", "infinity_emb.cli", "v2", *model, *how, *place],
            cwd=folder,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **_NO_TELEMETRY, "HF_HUB_CACHE": self._cache.name},
        )
        self._wait_until_ready()

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return the vectors [texts, dimensions] of one call."""
        body = {"model": "bench", "input": list(texts), "encoding_format": "base64"}
        answer = json.loads(self._ask("POST", "/embeddings", json.dumps(body)))
        packed = (base64.b64decode(item["embedding"]) for item in answer["data"])
        return np.stack([np.frombuffer(vector, np.float32) for vector in packed])

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._cache.cleanup()

    def _ask(self, method: str, path: str, body: str | None = None) -> bytes:
        connection = HTTPConnection("127.0.0.1", self._port)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"{path} answered {response.status}: {content[:500]!r}")
        return content

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self._log.seek(0)
                log = self._log.read()[-2000:]
                self.close()
                raise RuntimeError(f"the server never answered:\n{log}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            self._ask("GET", "/health")
        except OSError:
            return False
        return True


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
