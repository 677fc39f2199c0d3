"""What this process may compute with: cores (the scheduler's affinity mask and the cgroup's CPU quota), and
instructions.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from threadpoolctl import threadpool_limits

_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = Path("/sys/fs/cgroup/cpu")
_CPU_INFO = Path("/proc/cpuinfo")
_INT8_INSTRUCTIONS = frozenset({"avx512_vnni", "avx_vnni"})


def usable_cores(cgroup_v2: Path = _CGROUP_V2, cgroup_v1: Path = _CGROUP_V1) -> int:
    """Return the number of cores to compute with: affinity, capped by the cgroup quota, at least 1.

    ONNX Runtime's own default ignores the quota, and so starts too many threads in a container.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota_v2(cgroup_v2) or _quota_v1(cgroup_v1)
    return max(1, min(affinity, math.ceil(quota)) if quota else affinity)


def keep_blas_single_threaded() -> None:
    """Let NumPy, which must have been loaded, multiply matrices on the calling thread only, from now on.

    Its BLAS wakes a thread for every core, and they spin for some 100 ms after the product, in the way of
    ONNX Runtime's threads: a Whisper encoder behind the product of a spectrogram took 118 ms, alone 60.
    """
    threadpool_limits(limits=1, user_api="blas")


def adds_int8_exactly(cpu_info: Path = _CPU_INFO) -> bool:
    """Tell whether the processor adds products of 8-bit integers up in 32 bits (VNNI); False if unknown."""
    return not _INT8_INSTRUCTIONS.isdisjoint(instructions(cpu_info))


def instructions(cpu_info: Path = _CPU_INFO) -> frozenset[str]:
    """Return the extensions of its instruction set that the processor reports; none if unknown."""
    try:
        lines = cpu_info.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))


def _quota_v2(file: Path) -> float | None:
    try:
        quota, period = file.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 else None
