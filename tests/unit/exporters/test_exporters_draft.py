"""A bundle appears in a store whole and under the next version, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from aimass.model.v1.manifest_pb2 import ModelManifest
from aimass_exporters.bundles.draft import bundle_name, derived_name, draft_folder, publish
from aimass_exporters.errors import InvalidExportOption
from aimass_serving.bundle import read_manifest


def _publish(store: Path, content: str = "x") -> Path:
    with draft_folder(store) as draft:
        (draft / "decoder.onnx").write_text(content)
        return publish(draft, ModelManifest(schema_version=1, name="m"), store)


def _fail_halfway(store: Path) -> None:
    with draft_folder(store) as draft:
        (draft / "decoder.onnx").write_text("half")
        raise RuntimeError


def test_exports_of_one_name_get_rising_versions(tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert [_publish(store).name for _ in range(3)] == ["1", "2", "3"]
    (store / "m" / "2").rename(store / "m" / "11")
    assert _publish(store).name == "12"


def test_the_manifest_lists_every_file_with_its_checksum(tmp_path: Path) -> None:
    manifest = read_manifest(_publish(tmp_path / "store", "hello"))
    [file] = manifest.files
    assert (file.path, file.size_bytes, manifest.version) == ("decoder.onnx", 5, "1")
    assert file.sha256 == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


def test_a_failed_export_leaves_no_trace_not_even_the_store(tmp_path: Path) -> None:
    store = tmp_path / "deep" / "store"
    with pytest.raises(RuntimeError):
        _fail_halfway(store)
    assert not store.exists()


def test_a_failed_export_leaves_the_versions_before_it(tmp_path: Path) -> None:
    store = tmp_path / "store"
    _publish(store)
    with pytest.raises(RuntimeError):
        _fail_halfway(store)
    assert [p.name for p in store.iterdir()] == ["m"]


@pytest.mark.parametrize("name", ["", "Upper", "a/b", "..", ".hidden", "a" * 129, "a\n"])
def test_a_name_that_no_store_can_hold_is_refused(name: str) -> None:
    with pytest.raises(InvalidExportOption, match="--name"):
        bundle_name(name)


@pytest.mark.parametrize(
    ("suggested", "name"),
    [("My Model!", "my-model"), ("SmolLM2-135M.Q4_1", "smollm2-135m.q4_1"), ("日本", "model"), ("..x", "x")],
)
def test_names_made_from_folders_are_valid(suggested: str, name: str) -> None:
    assert bundle_name(derived_name(suggested)) == name
