"""What a number was measured on, and who else was using the machine meanwhile. Reads /proc; Linux only."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil
from aimass_serving.cpu import usable_cores

SIMD_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
VERSIONS_OF = (
    "aimass-serving",
    "onnxruntime",
    "onnxruntime-gpu",
    "grpcio",
    "numpy",
    "torch",
    "transformers",
    "optimum-onnx",
    "ctranslate2",
    "sentence-transformers",
    "fastembed",
)


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine, as a reader of the table needs to know it."""

    cpu: str
    cores: int
    """Cores this process may use: affinity capped by the cgroup's quota."""
    flags: tuple[str, ...]
    """The SIMD extensions it has, of those that matter here."""
    memory_gib: float
    system: str
    python: str
    load_before: tuple[float, float, float]
    """Load average over 1, 5 and 15 minutes before the first run."""
    versions: dict[str, str]

    def sentence(self) -> str:
        """Return one line for the head of a table."""
        load = ", ".join(f"{x:.2f}" for x in self.load_before)
        return (
            f"{self.cpu}, {self.cores} cores, {' '.join(self.flags)}, {self.memory_gib:.0f} GiB, "
            f"{self.system}, Python {self.python}, load before {load}"
        )


def describe_machine() -> Machine:
    """Return the machine as it is now."""
    cpu_info = _cpu_info()
    flags = cpu_info.get("flags", "").split()
    return Machine(
        cpu=cpu_info.get("model name", platform.processor() or platform.machine()),
        cores=usable_cores(),
        flags=tuple(flag for flag in SIMD_FLAGS if flag in flags),
        memory_gib=psutil.virtual_memory().total / 2**30,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        load_before=os.getloadavg(),
        versions={name: version for name in VERSIONS_OF if (version := _version(name))},
    )


def _cpu_info() -> dict[str, str]:
    """Fields of the first processor in /proc/cpuinfo."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


class ForeignLoad:
    """Context manager: how much of the machine other programs used while the block ran.

    `share` is CPU time of everybody minus that of this process and its descendants (which must live through
    the block), over what all cores could have given. Time stolen by the hypervisor counts as foreign.
    """

    def __init__(self) -> None:
        self.share = 0.0

    def __enter__(self) -> ForeignLoad:
        self._before = _everybody_s(), _own_s()
        return self

    def __exit__(self, *_: object) -> None:
        (busy, total), own = _everybody_s(), _own_s()
        (busy_before, total_before), own_before = self._before
        elapsed = max(total - total_before, 1e-9)
        self.share = max(0.0, (busy - busy_before) - (own - own_before)) / elapsed


def _everybody_s() -> tuple[float, float]:
    """CPU seconds that were used, and that there were, since boot, summed over all cores."""
    times = psutil.cpu_times()
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total - times.idle - getattr(times, "iowait", 0.0), total


def _own_s() -> float:
    """CPU seconds of this process and its living descendants."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True)) if process.is_running()]
    return float(sum(t.user + t.system for t in times))
