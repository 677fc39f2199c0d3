"""What a bundle must be before a service loads it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aimass.model.v1.manifest_pb2 import TASK_TEXT_GENERATION, ModelManifest
from aimass_serving.bundle import read_bundle, read_manifest
from aimass_serving.errors import BadBundle
from aimass_serving.testing import write_bundle, write_manifest


def edit_manifest(folder: Path, edit: Callable[[ModelManifest], Any]) -> None:
    manifest = read_manifest(folder)
    edit(manifest)
    write_manifest(folder, manifest)


def edit_json(folder: Path, **fields: Any) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def refusal(folder: Path, *, allow_unverified: bool = False) -> str:
    with pytest.raises(BadBundle) as caught:
        read_bundle(folder, allow_unverified=allow_unverified)
    return str(caught.value)


def test_whole_bundle_is_verified(tmp_path: Path) -> None:
    bundle = read_bundle(write_bundle(tmp_path, "m", version=3, files={"tokenizer.json": b"{}"}))
    assert bundle.is_verified
    assert bundle.ref == "m@3"
    assert bundle.skipped_checks == ()
    assert bundle.file("tokenizer.json").read_bytes() == b"{}"
    assert bundle.graph("encoder").name == "model.onnx"
    assert bundle.golden()["tolerance"] == 0


def test_altered_byte_is_refused_and_allowed_only_on_the_operators_word(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path, "m", files={"weights.bin": b"abc"})
    (folder / "weights.bin").write_bytes(b"abd")
    assert "weights.bin was altered" in refusal(folder)
    bundle = read_bundle(folder, allow_unverified=True)
    assert not bundle.is_verified
    assert "weights.bin was altered" in bundle.skipped_checks[0]


def test_altered_length_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path, "m", files={"weights.bin": b"abc"})
    (folder / "weights.bin").write_bytes(b"abcd")
    assert "expected 3 bytes, got 4" in refusal(folder)


@pytest.mark.parametrize("allow_unverified", [False, True])
def test_missing_file_is_refused_always(tmp_path: Path, allow_unverified: bool) -> None:
    folder = write_bundle(tmp_path, "m", files={"weights.bin": b"abc"})
    (folder / "weights.bin").unlink()
    assert "weights.bin is missing" in refusal(folder, allow_unverified=allow_unverified)


@pytest.mark.parametrize("allow_unverified", [False, True])
def test_symbolic_link_to_a_file_is_refused_always(tmp_path: Path, allow_unverified: bool) -> None:
    folder = write_bundle(tmp_path, "m", files={"weights.bin": b"abc"})
    (tmp_path / "outside").write_bytes(b"abc")
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").symlink_to(tmp_path / "outside")
    assert "symbolic link" in refusal(folder, allow_unverified=allow_unverified)


def test_symbolic_link_in_the_middle_of_a_path_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path, "m", files={"sub/weights.bin": b"abc"})
    (folder / "sub").rename(tmp_path / "outside")
    (folder / "sub").symlink_to(tmp_path / "outside")
    assert "symbolic link" in refusal(folder)


def test_hard_link_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path, "m", files={"weights.bin": b"abc"})
    os.link(folder / "weights.bin", tmp_path / "second-name")
    assert "hard link" in refusal(folder)


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "/etc/passwd",
        "a/../../secret",
        "a\\b",
        "C:/x",
        "",
        ".",
        "a//b",
        "*/_ORT_MEM_ADDR_/*",
        "a\0b",
    ],
)
def test_manifest_path_that_leaves_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_bytes(b"")
    folder = write_bundle(tmp_path, "m")
    edit_manifest(folder, lambda manifest: manifest.files.add(path=path))
    assert "expected a plain path inside the bundle" in refusal(folder, allow_unverified=True)


@pytest.mark.parametrize("names", [["tone", "tone"], ["To ne"], [""]])
def test_adapters_without_names_of_their_own_are_refused(tmp_path: Path, names: list[str]) -> None:
    folder = write_bundle(tmp_path, "m")
    edit_manifest(folder, lambda manifest: [manifest.adapters.add(name=name) for name in names])
    assert "expected adapters with names of their own" in refusal(folder, allow_unverified=True)


def test_adapter_without_parity_or_outside_its_bound_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path, "m")
    edit_manifest(folder, lambda manifest: manifest.adapters.add(name="tone"))
    assert "no parity of adapter tone" in refusal(folder)

    def drift(manifest: ModelManifest) -> None:
        manifest.adapters[0].parity.CopyFrom(manifest.parity)
        manifest.adapters[0].parity.measures[0].value = 9

    edit_manifest(folder, drift)
    assert "of adapter tone is 9, outside its bound" in refusal(folder)


def test_folder_listed_as_a_file_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path, "m", files={"sub/weights.bin": b"abc"})
    edit_manifest(folder, lambda manifest: manifest.files.add(path="sub"))
    assert "sub is missing" in refusal(folder)


def test_unlisted_file_is_never_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_bundle(tmp_path, "m")
    (folder / "plugin.so").write_bytes(b"x")
    bundle = read_bundle(folder)
    assert "plugin.so" in caplog.text
    with pytest.raises(BadBundle, match="does not list"):
        bundle.file("plugin.so")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "schema_version"),
        (b"[" * 100_000, "not JSON"),
        (b'{"schema_version": 2}', "expected manifest schema_version 1, got 2"),
        (b'{"schema_version": 1, "nmae": "m"}', "nmae"),
        (b'{"schema_version": 1, "name": 7}', "name"),
        (b'{"schema_version": 1, "task": "TASK_JUGGLING"}', "task"),
    ],
)
def test_manifest_that_does_not_parse_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    folder = write_bundle(tmp_path, "m")
    (folder / "manifest.json").write_bytes(content)
    assert complaint in refusal(folder)


def test_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    assert "manifest.json cannot be read" in refusal(tmp_path)


def test_manifest_that_is_a_link_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path, "m")
    (folder / "manifest.json").rename(tmp_path / "elsewhere.json")
    (folder / "manifest.json").symlink_to(tmp_path / "elsewhere.json")
    assert "is a link" in refusal(folder)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda m: setattr(m, "name", "Bad Name"), "name 'Bad Name'"),
        (lambda m: setattr(m, "version", "1.0"), "version '1.0'"),
        (lambda m: m.ClearField("graphs"), "no graphs"),
        (lambda m: setattr(m, "task", TASK_TEXT_GENERATION), "needs `decoder`"),
        (lambda m: m.ClearField("encoder"), "needs `encoder`"),
        (lambda m: m.files.append(m.files[0]), "lists a file twice"),
        (lambda m: setattr(m.graphs[0], "file", "other.onnx"), "does not list 'other.onnx'"),
        (lambda m: m.graphs[0].external_data.append("w.data"), "does not list 'w.data'"),
        (lambda m: setattr(m.tokenizer, "file", "tokenizer.json"), "does not list 'tokenizer.json'"),
        (lambda m: m.files.pop(), "does not list 'golden.npz'"),
    ],
)
def test_manifest_that_says_too_little_is_refused(
    tmp_path: Path, edit: Callable[[ModelManifest], Any], complaint: str
) -> None:
    folder = write_bundle(tmp_path, "m")
    edit_manifest(folder, edit)
    assert complaint in refusal(folder)


@pytest.mark.parametrize(
    ("value", "bound", "comparison", "is_good"),
    [
        (1.0, 1.0, "COMPARISON_AT_MOST", True),
        (1.1, 1.0, "COMPARISON_AT_MOST", False),
        (0.99, 0.9, "COMPARISON_AT_LEAST", True),
        (0.89, 0.9, "COMPARISON_AT_LEAST", False),
        ("NaN", 1.0, "COMPARISON_AT_MOST", False),
        (0.0, "Infinity", "COMPARISON_AT_MOST", False),
        (1.0, 1.0, "COMPARISON_UNSPECIFIED", False),
    ],
)
def test_parity_outside_its_bound_is_unverified(
    tmp_path: Path, value: Any, bound: Any, comparison: str, is_good: bool
) -> None:
    folder = write_bundle(tmp_path, "m")
    measure = {"name": "d", "value": value, "bound": bound, "comparison": comparison}
    edit_json(folder, parity={"measures": [measure]})
    assert read_bundle(folder, allow_unverified=True).is_verified is is_good


def test_bundle_without_parity_is_unverified(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path, "m")
    edit_manifest(folder, lambda manifest: manifest.ClearField("parity"))
    assert "no parity" in refusal(folder)


def test_unknown_graph_role_is_refused(tmp_path: Path) -> None:
    bundle = read_bundle(write_bundle(tmp_path, "m"))
    with pytest.raises(BadBundle, match="expected a graph with role 'decoder', got: encoder"):
        bundle.graph("decoder")


def test_pickled_golden_arrays_are_refused(tmp_path: Path) -> None:
    pickled = np.array([{"a": 1}], dtype=object)
    file = tmp_path / "g.npz"
    np.savez(file, x=pickled)
    bundle = read_bundle(write_bundle(tmp_path, "m", files={"golden.npz": file.read_bytes()}))
    with pytest.raises(BadBundle, match="not a file of arrays"):
        bundle.golden()


def test_golden_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    bundle = read_bundle(write_bundle(tmp_path, "m", files={"golden.npz": b"PK\x03\x04 nonsense"}))
    with pytest.raises(BadBundle, match="not a file of arrays"):
        bundle.golden()
