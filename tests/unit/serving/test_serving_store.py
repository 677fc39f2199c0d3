"""Where bundles are found, and how remote ones get here."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from aimass.model.v1.manifest_pb2 import TASK_EMBEDDING, TASK_TEXT_GENERATION, TASK_UNSPECIFIED
from aimass_serving.errors import BadBundle, StoreUnavailable
from aimass_serving.store import BundleRef, RemoteStore, open_store
from aimass_serving.testing import write_bundle


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[str]:
    """A store in fsspec's memory file system with one bundle, `m@1`."""
    write_bundle(tmp_path / "local", "m", files={"sub/weights.bin": b"abc"})
    files = fsspec.filesystem("memory")
    files.put(str(tmp_path / "local") + "/", "/store", recursive=True)
    yield "memory://store"
    files.rm("/store", recursive=True)


def test_local_store_lists_newest_version_first(tmp_path: Path) -> None:
    for name, version in [("b", 1), ("a", 2), ("a", 10)]:
        write_bundle(tmp_path, name, version=version)
    write_bundle(tmp_path, "c", task=TASK_TEXT_GENERATION)
    assert open_store(str(tmp_path)).list() == [
        BundleRef("a", "10", TASK_EMBEDDING),
        BundleRef("a", "2", TASK_EMBEDDING),
        BundleRef("b", "1", TASK_EMBEDDING),
        BundleRef("c", "1", TASK_TEXT_GENERATION),
    ]


def test_folders_that_are_no_bundles_are_not_listed(tmp_path: Path) -> None:
    for folder in (".staging/1", "m/latest", "m/01", "Name With Spaces/1"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "m/7").write_text("a file")
    assert open_store(str(tmp_path)).list() == []


def test_bundle_whose_manifest_cannot_be_read_is_listed_without_a_task(tmp_path: Path) -> None:
    (tmp_path / "m/1").mkdir(parents=True)
    assert open_store(str(tmp_path)).list() == [BundleRef("m", "1", TASK_UNSPECIFIED)]


def test_missing_folder_holds_nothing(tmp_path: Path) -> None:
    assert open_store(str(tmp_path / "nowhere")).list() == []


def test_bundle_in_the_folder_of_another_is_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path, "m").rename(tmp_path / "m" / "2")
    with pytest.raises(BadBundle, match="its manifest says it is m@1"):
        open_store(str(tmp_path)).open(BundleRef("m", "2"))


def test_file_url_is_a_local_store(tmp_path: Path) -> None:
    write_bundle(tmp_path, "m")
    assert open_store(f"file://{tmp_path}").open(BundleRef("m", "1")).is_verified


def test_remote_bundle_is_copied_once_for_each_content(remote: str, tmp_path: Path) -> None:
    store = open_store(remote, cache=tmp_path / "cache")
    [ref] = store.list()
    first = store.open(ref)
    assert first.file("sub/weights.bin").read_bytes() == b"abc"
    assert first.path.is_relative_to(tmp_path / "cache")
    fsspec.filesystem("memory").rm("/store/m/1/sub/weights.bin")
    assert store.open(ref).path == first.path
    assert [path.name for path in (tmp_path / "cache/bundles").iterdir()] == [first.path.name]


def test_remote_bundle_with_a_missing_file_leaves_no_copy(remote: str, tmp_path: Path) -> None:
    fsspec.filesystem("memory").rm("/store/m/1/sub/weights.bin")
    store = RemoteStore(remote, cache=tmp_path / "cache")
    with pytest.raises(BadBundle, match=r"weights\.bin is missing"):
        store.open(BundleRef("m", "1"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_altered_copy_of_a_remote_bundle_is_refused(remote: str, tmp_path: Path) -> None:
    store = RemoteStore(remote, cache=tmp_path / "cache")
    store.open(BundleRef("m", "1")).file("sub/weights.bin").write_bytes(b"abd")
    with pytest.raises(BadBundle, match="altered"):
        store.open(BundleRef("m", "1"))


def test_remote_manifest_cannot_write_outside_the_cache(remote: str, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    manifest = files.cat_file("/store/m/1/manifest.json").replace(b"sub/weights.bin", b"../../../escaped")
    files.pipe_file("/store/m/1/manifest.json", manifest)
    with pytest.raises(BadBundle, match="expected a plain path"):
        RemoteStore(remote, cache=tmp_path / "cache").open(BundleRef("m", "1"))
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("url", ["nosuchprotocol://bucket", "memory+x://y"])
def test_store_that_cannot_be_listed_says_so(url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        open_store(url, cache=tmp_path).list()
