"""Whisper's weights out of a CTranslate2 file, and models that are spread over packages. No network."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aimass_exporters.errors import InvalidCheckpoint
from aimass_exporters.seq2seq.seq2seq_parity import edit_distance
from aimass_exporters.sources.ct2_model import read_ct2_model
from aimass_exporters.sources.joined_package import join_files
from aimass_exporters.sources.speech_samples import decimated
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

_DTYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def _text(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def ct2_file(arrays: dict[str, NDArray[Any]], *, aliases: dict[str, str], version: int = 6) -> bytes:
    content = struct.pack("<I", version) + _text("WhisperSpec") + struct.pack("<II", 3, len(arrays))
    for name, array in arrays.items():
        content += _text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        content += struct.pack("<BI", _DTYPES[array.dtype.name], array.nbytes) + array.tobytes()
    content += struct.pack("<I", len(aliases))
    return content + b"".join(_text(alias) + _text(name) for alias, name in aliases.items())


ARRAYS: dict[str, NDArray[Any]] = {
    "decoder/weight": np.arange(6, dtype=np.float16).reshape(2, 3),
    "decoder/scale": np.array(2.5, np.float32),
    "decoder/ids": np.array([1, 2], np.int32),
}


def test_every_array_and_alias_of_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(ct2_file(ARRAYS, aliases={"decoder/tied": "decoder/weight"}))
    model = read_ct2_model(file)
    assert model.spec == "WhisperSpec"
    assert model.arrays.keys() == {*ARRAYS, "decoder/tied"}
    for name, array in ARRAYS.items():
        assert model.arrays[name].dtype == array.dtype
        assert np.array_equal(model.arrays[name], array)
    assert np.array_equal(model.arrays["decoder/tied"], ARRAYS["decoder/weight"])


@given(st.integers(0, 200))
def test_a_file_that_is_cut_off_is_refused(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    whole = ct2_file(ARRAYS, aliases={"decoder/tied": "decoder/weight"})
    file = tmp_path_factory.mktemp("cut") / "model.bin"
    file.write_bytes(whole[: min(length, len(whole) - 1)])
    with pytest.raises(InvalidCheckpoint):
        read_ct2_model(file)


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(ct2_file({}, aliases={}, version=7))
    with pytest.raises(InvalidCheckpoint, match="expected format version 6, got 7"):
        read_ct2_model(file)


def test_parts_are_joined_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    files = []
    for name, content in (("a.bin.part10", b"z"), ("a.bin.part2", b"y"), ("a.bin.part1", b"x"), ("b", b"B")):
        (tmp_path / name).write_bytes(content)
        files.append(tmp_path / name)
    join_files(files, tmp_path / "joined")
    assert (tmp_path / "joined" / "a.bin").read_bytes() == b"xyz"
    assert (tmp_path / "joined" / "b").read_bytes() == b"B"


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_edit_distance_is_a_distance(first: list[int], second: list[int]) -> None:
    distance = edit_distance(first, second)
    assert distance == edit_distance(second, first)
    assert abs(len(first) - len(second)) <= distance <= max(len(first), len(second))
    assert (distance == 0) == (first == second)
    assert edit_distance([*first, 9], second) <= distance + 1


def test_decimation_keeps_low_tones_and_drops_those_that_would_fold() -> None:
    time_s = np.arange(48_000) / 48_000
    low, high = (np.sin(2 * np.pi * hz * time_s).astype(np.float32) for hz in (440, 11_000))
    middle = slice(1000, -1000)
    assert np.abs(decimated(low, 3)[middle] - low[::3][middle]).max() < 0.02
    assert np.abs(decimated(high, 3)[middle]).max() < 0.02
