"""The TypeScript client: its own tests, and its examples and live tests against real services.

Needs node 20 or newer with npm. Its packages are installed into its `node_modules` when they are not there.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from aimass import EmbeddingClient, GenerationClient, GenerationOptions
from aimass_encoder.__main__ import PLAN as ENCODER_PLAN
from aimass_generation.__main__ import PLAN as GENERATION_PLAN
from aimass_generation.engine import GenerationEngine
from aimass_serving.lifecycle import RunningService
from aimass_serving.testing import running_service

CLIENT = Path(__file__).parents[2] / "clients/typescript"
MIN_NODE_MAJOR = 20
QUESTION = "Why is the sky blue?"
SENTENCES = ("A cat sleeps.", "A kitten naps.", "Stocks fell sharply.")


def what_is_missing() -> str:
    """Say why the client cannot be tested here; empty when it can."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return "the TypeScript client needs node and npm, which are not installed here"
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    is_old = int(version.removeprefix("v").split(".")[0]) < MIN_NODE_MAJOR
    return f"the TypeScript client needs node {MIN_NODE_MAJOR} or newer, here is {version}" if is_old else ""


MISSING = what_is_missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@dataclass(frozen=True, slots=True)
class Finished:
    """A program that ended."""

    code: int
    stdout: str
    stderr: str

    def check(self) -> Finished:
        """Fail the test with the program's own words unless it succeeded."""
        assert self.code == 0, f"exit code {self.code}\n{self.stdout[-8000:]}\n{self.stderr[-4000:]}"
        return self


async def run(*command: str | Path, environment: Mapping[str, str] | None = None) -> Finished:
    """Run a program in the client's folder while this event loop goes on serving."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=CLIENT,
        env={**os.environ, **(environment or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        stdout, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Finished(process.returncode or 0, stdout.decode(), stderr.decode())


async def run_example(name: str, *arguments: str) -> Finished:
    return await run("node", "--import", "tsx", f"examples/{name}.ts", *arguments)


async def run_live_tests(
    name: str, *, address: str, model: str, environment: Mapping[str, str] | None = None
) -> None:
    """Run `tests/live/<name>.test.ts` against a running service."""
    target = {"AIMASS_TEST_ADDRESS": address, "AIMASS_TEST_MODEL": model, **(environment or {})}
    done = await run("node", "--import", "tsx", "--test", f"tests/live/{name}.test.ts", environment=target)
    assert re.search(r"^# pass [1-9]", done.check().stdout, re.MULTILINE), done.stdout


@pytest.fixture(scope="module", autouse=True)
def _packages() -> None:
    """Install what the lock file pins, unless it is there."""
    if not _is_installed():
        command = ["npm", "ci", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=CLIENT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"npm could not install the client's packages:\n{done.stderr}"


def _is_installed() -> bool:
    """Tell whether every package of the lock file that this machine needs is installed in its version."""
    there = CLIENT / "node_modules/.package-lock.json"
    if not there.is_file():
        return False
    installed = json.loads(there.read_text())["packages"]
    locked = json.loads((CLIENT / "package-lock.json").read_text())["packages"]
    return all(
        name in installed and installed[name]["version"] == package["version"]
        for name, package in locked.items()
        if name and (name in installed or not package.get("optional"))
    )


@pytest.fixture
async def generation(tiny_llama_store: Path) -> AsyncIterator[RunningService[GenerationEngine]]:
    async with running_service(GENERATION_PLAN, tiny_llama_store) as service:
        yield service


@pytest.fixture
async def encoder_address(minilm_store: Path) -> AsyncIterator[str]:
    async with running_service(ENCODER_PLAN, minilm_store) as service:
        yield service.address


async def test_the_client_its_examples_and_its_tests_compile() -> None:
    (await run("npm", "run", "--silent", "typecheck")).check()


async def test_its_own_tests_pass() -> None:
    (await run("npm", "test")).check()


def test_the_lock_file_names_no_address_to_download_from() -> None:
    packages = json.loads((CLIENT / "package-lock.json").read_text())["packages"]
    assert not [name for name, package in packages.items() if "resolved" in package]
    assert all("integrity" in package for name, package in packages.items() if name)


async def test_the_stream_example_prints_the_text_of_the_python_client(
    generation: RunningService[GenerationEngine],
) -> None:
    address, num_tokens = generation.address, 16
    done = await run_example(
        "stream", "--address", address, "--model", "tiny-llama", "--max-new-tokens", str(num_tokens), QUESTION
    )

    def complete() -> str:
        options = GenerationOptions(temperature=0, max_new_tokens=num_tokens)
        with GenerationClient(address) as client:
            return client.complete([("user", QUESTION)], model="tiny-llama", options=options).text

    assert done.check().stdout == await asyncio.to_thread(complete) + "\n"
    assert re.match(r"(MAX_NEW_TOKENS|EOS): \d+ tokens, first after \d+ ms", done.stderr)


async def test_an_example_says_what_went_wrong_in_one_line(
    generation: RunningService[GenerationEngine],
) -> None:
    done = await run_example("stream", "--address", generation.address, "--model", "no-such-model")
    assert (done.code, done.stdout) == (1, "")
    assert re.fullmatch(r"MODEL_NOT_FOUND: model 'no-such-model' is not served here.*\n", done.stderr)


async def test_the_similarity_example_prints_what_the_python_client_computes(encoder_address: str) -> None:
    done = await run_example("similarity", "--address", encoder_address, *SENTENCES)

    def similarities() -> list[tuple[float, str]]:
        with EmbeddingClient(encoder_address) as client:
            vectors = client.embed(SENTENCES, model="all-minilm-l6-v2").vectors
        pairs = [(float(vectors[a] @ vectors[b]), a, b) for a in range(3) for b in range(a + 1, 3)]
        return [(cosine, f"{SENTENCES[a]}  |  {SENTENCES[b]}") for cosine, a, b in sorted(pairs)[::-1]]

    printed = [line.split("  ", 1) for line in done.check().stdout.splitlines()]
    expected = await asyncio.to_thread(similarities)
    assert [pair for _, pair in printed] == [pair for _, pair in expected]
    assert [float(cosine) for cosine, _ in printed] == pytest.approx([c for c, _ in expected], abs=1e-4)
    assert printed[0][1] == "A cat sleeps.  |  A kitten naps."


async def test_the_client_works_against_a_real_generation_service(
    generation: RunningService[GenerationEngine],
) -> None:
    await run_live_tests("generation", address=generation.address, model="tiny-llama")

    stats = generation.registry.get("tiny-llama").engine.stats()
    assert stats.num_cancelled >= 1, "leaving a stream early reaches the engine as a cancel"
    assert stats.num_slots_taken == 0


async def test_the_client_works_against_a_real_encoder_service(encoder_address: str) -> None:
    await run_live_tests("embedding", address=encoder_address, model="all-minilm-l6-v2")


@pytest.mark.skipif(
    shutil.which("openssl") is None, reason="making certificates needs openssl, not installed here"
)
async def test_the_client_proves_itself_by_certificate_and_key(
    tiny_llama_store: Path, tmp_path: Path
) -> None:
    make_certificates(tmp_path)
    (tmp_path / "keys.txt").write_text(hashlib.sha256(b"a-long-and-random-key").hexdigest() + "\n")
    async with running_service(
        GENERATION_PLAN,
        tiny_llama_store,
        tls_cert=tmp_path / "server.pem",
        tls_key=tmp_path / "server.key",
        tls_client_ca=tmp_path / "ca.pem",
        api_keys=tmp_path / "keys.txt",
    ) as service:
        await run_live_tests(
            "tls",
            address=service.address,
            model="tiny-llama",
            environment={"AIMASS_TEST_CERTIFICATES": str(tmp_path)},
        )


def make_certificates(folder: Path) -> None:
    """Write the authority `ca.pem`, and from it `server` and `client`: certificates (.pem), keys (.key)."""
    openssl = functools.partial(subprocess.run, cwd=folder, check=True, capture_output=True)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "2"]
    openssl(
        [
            "openssl",
            "req",
            "-x509",
            *key,
            "-subj",
            "/CN=test authority",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ]
    )
    for name in ("server", "client"):
        subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:aimass.test"]
        issuer = ["-CA", "ca.pem", "-CAkey", "ca.key"]
        openssl(
            [
                "openssl",
                "req",
                "-x509",
                *key,
                *subject,
                *issuer,
                "-keyout",
                f"{name}.key",
                "-out",
                f"{name}.pem",
            ]
        )
