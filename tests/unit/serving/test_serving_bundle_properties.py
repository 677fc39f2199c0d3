"""Whatever stands in a bundle, reading it ends in a bundle or in one kind of error."""

import contextlib
import json
from pathlib import Path
from typing import Any

from aimass.model.v1.manifest_pb2 import ModelManifest
from aimass_serving.bundle import check_plain_path, parse_manifest
from aimass_serving.errors import BadBundle
from aimass_serving.external_data import external_tensors
from aimass_serving.testing import EMPTY_GRAPH
from hypothesis import example, given
from hypothesis import strategies as st

PATHS = st.text(alphabet="ab./\\-_~*: \0\n", max_size=12) | st.text(max_size=12)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from([field.name for field in ModelManifest.DESCRIPTOR.fields])


@given(PATHS)
@example("a/../../b")
@example("..")
def test_path_that_is_let_pass_stays_inside(path: str) -> None:
    root = Path("/bundle/root")
    try:
        check_plain_path(path, bundle="m@1")
    except BadBundle:
        return
    assert Path(str(root / path)).is_relative_to(root)
    assert ".." not in Path(path).parts
    assert (root / path).parts[: len(root.parts)] == root.parts
    assert path


@given(st.dictionaries(FIELDS, JSON_VALUES, max_size=4))
def test_manifest_of_odd_values_is_read_or_refused(fields: dict[str, Any]) -> None:
    text = json.dumps(fields | {"schema_version": 1}).encode()
    with contextlib.suppress(BadBundle):
        assert isinstance(parse_manifest(text, bundle="m@1"), ModelManifest)


@given(st.binary(max_size=64))
def test_manifest_of_noise_is_refused(noise: bytes) -> None:
    try:
        parse_manifest(noise, bundle="m@1")
    except BadBundle:
        return
    raise AssertionError("noise was read as a manifest")


@given(st.binary(max_size=64), st.integers(0, len(EMPTY_GRAPH)))
def test_graph_of_noise_is_read_or_refused(noise: bytes, place: int) -> None:
    with contextlib.suppress(ValueError):
        assert external_tensors(EMPTY_GRAPH[:place] + noise + EMPTY_GRAPH[place:]) is not None
