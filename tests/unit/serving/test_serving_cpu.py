"""How many cores a container may use, and what its processor can do."""

import os
from pathlib import Path

import numpy as np
import pytest
from aimass_serving.cpu import adds_int8_exactly, keep_blas_single_threaded, usable_cores
from threadpoolctl import threadpool_info, threadpool_limits

AFFINITY = len(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def machine_with_many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quota is what is tested here, so the affinity mask must not be the smaller number."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))


def v2(tmp_path: Path, text: str) -> int:
    (tmp_path / "cpu.max").write_text(text)
    return usable_cores(tmp_path / "cpu.max", tmp_path / "no-v1")


def v1(tmp_path: Path, quota: str, period: str) -> int:
    (tmp_path / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu.cfs_period_us").write_text(period)
    return usable_cores(tmp_path / "no-v2", tmp_path)


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("200000 100000\n", 2),
        ("150000 100000", 2),
        ("10000 100000", 1),
        ("max 100000", 16),
        ("9900000 100000", 16),
    ],
)
def test_cgroup_v2_quota_caps_the_cores(tmp_path: Path, text: str, cores: int) -> None:
    assert v2(tmp_path, text) == cores


@pytest.mark.parametrize(
    ("quota", "period", "cores"), [("400000", "100000", 4), ("-1", "100000", 16), ("50000", "100000", 1)]
)
def test_cgroup_v1_quota_caps_the_cores(tmp_path: Path, quota: str, period: str, cores: int) -> None:
    assert v1(tmp_path, quota, period) == cores


@pytest.mark.parametrize("text", ["", "nonsense", "1 2 3"])
def test_quota_that_cannot_be_read_changes_nothing(tmp_path: Path, text: str) -> None:
    assert v2(tmp_path, text) == 16


def test_without_cgroups_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "no-v2", tmp_path / "no-v1") == 16


@pytest.mark.parametrize(
    ("text", "is_exact"),
    [
        ("processor: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n", True),
        ("processor: 0\nflags\t\t: fpu avx2 avx_vnni\n", True),
        ("processor: 0\nflags\t\t: fpu avx2 avx512f\n", False),
        ("Features: fp asimd\n", False),
    ],
)
def test_exact_sums_of_8_bit_products_are_told_by_the_flags(
    tmp_path: Path, text: str, is_exact: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert adds_int8_exactly(tmp_path / "cpuinfo") is is_exact


def test_a_processor_that_tells_nothing_is_not_trusted(tmp_path: Path) -> None:
    assert not adds_int8_exactly(tmp_path / "missing")


def test_products_of_numpy_stay_on_the_thread_that_asks_for_them() -> None:
    with threadpool_limits(limits=2, user_api="blas"):  # puts the limits of before back at the end
        keep_blas_single_threaded()

        product = np.ones((600, 600)) @ np.ones((600, 600))
        assert product[0, 0] == 600
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}
