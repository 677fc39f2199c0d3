"""A graph must not send the runtime to files outside its bundle."""

from pathlib import Path

import onnx
import pytest
from aimass_serving.bundle import read_bundle
from aimass_serving.errors import BadBundle
from aimass_serving.external_data import _SCHEMA, external_tensors
from aimass_serving.testing import write_bundle
from onnx import TensorProto, helper


def external_tensor(name: str, **entries: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(*tensors: TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()) -> bytes:
    graph = helper.make_graph(nodes, "g", [], [], initializer=tensors)
    return helper.make_model(graph).SerializeToString()


def read_with(tmp_path: Path, graph: bytes) -> None:
    (tmp_path / "secret").write_bytes(bytes(64))
    read_bundle(write_bundle(tmp_path, "m", graph=graph, files={"w.data": bytes(16)}))


def test_weights_inside_the_bundle_are_allowed(tmp_path: Path) -> None:
    read_with(tmp_path, model(external_tensor("w", location="w.data", offset="8", length="8")))


@pytest.mark.parametrize(
    "location",
    [
        "../secret",
        "../../secret",
        "/etc/passwd",
        "./w.data",
        "sub/../w.data",
        "",
        "*/_ORT_MEM_ADDR_/*",
        "w.data\0",
    ],
)
def test_location_outside_the_bundle_is_refused(tmp_path: Path, location: str) -> None:
    with pytest.raises(BadBundle, match="lie outside the bundle"):
        read_with(tmp_path, model(external_tensor("w", location=location)))


def test_location_of_an_unlisted_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadBundle, match="does not list"):
        read_with(tmp_path, model(external_tensor("w", location="other.data")))


@pytest.mark.parametrize(
    ("offset", "length", "complaint"),
    [
        ("9", "8", "end at byte 17 of w.data, which has 16"),
        ("99999999999999999", "0", "end at byte"),
        ("0", "17", "end at byte 17"),
        ("-1", "8", "not a whole number"),
        ("0x8", "8", "not a whole number"),
        ("9" * 30, "8", "not a whole number"),
        ("٣", "8", "not a whole number"),
    ],
)
def test_offset_and_length_outside_the_file_are_refused(
    tmp_path: Path, offset: str, length: str, complaint: str
) -> None:
    with pytest.raises(BadBundle, match=complaint):
        read_with(tmp_path, model(external_tensor("w", location="w.data", offset=offset, length=length)))


def test_tensors_of_nested_graphs_attributes_and_functions_are_found() -> None:
    inner = helper.make_graph([], "inner", [], [], initializer=[external_tensor("a", location="1")])
    branch = helper.make_node("If", [], [], then_branch=inner)
    constant = helper.make_node("Constant", [], [], value=external_tensor("b", location="2"))
    proto = onnx.ModelProto.FromString(model(external_tensor("c", location="3"), nodes=(branch, constant)))
    proto.functions.add(name="f").node.append(
        helper.make_node("Constant", [], [], value=external_tensor("d", location="4"))
    )
    proto.graph.sparse_initializer.add().values.CopyFrom(external_tensor("e", location="5"))
    found = external_tensors(proto.SerializeToString())
    assert {tensor.location for tensor in found} == {"1", "2", "3", "4", "5"}


def test_entries_count_even_when_the_tensor_claims_to_be_inside() -> None:
    tensor = external_tensor("w", location="x")
    tensor.data_location = TensorProto.DEFAULT
    assert [found.location for found in external_tensors(model(tensor))] == ["x"]


@pytest.mark.parametrize("content", [b"", b"not a model", b"\xff\xff\xff"])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BadBundle, match="not an ONNX model"):
        read_with(tmp_path, content)


def test_every_way_from_a_model_to_a_tensor_is_declared() -> None:
    """The schema written here covers every path of the real one, so no tensor can hide from the check."""
    leads_to_tensor: dict[str, set[tuple[str, int, str]]] = {}
    pending = [onnx.ModelProto.DESCRIPTOR]
    while pending:
        message = pending.pop()
        if message.name in leads_to_tensor:
            continue
        fields = [(f, f.message_type) for f in message.fields if f.message_type is not None]
        leads_to_tensor[message.name] = {(field.name, field.number, kind.name) for field, kind in fields}
        pending += [kind for _, kind in fields]
    reaching = {"TensorProto"}
    while (
        grown := {
            name for name, fields in leads_to_tensor.items() if {kind for _, _, kind in fields} & reaching
        }
        - reaching
    ):
        reaching |= grown
    for name in reaching - {"TensorProto"}:
        needed = {field for field in leads_to_tensor[name] if field[2] in reaching}
        assert needed <= {(field, number, kind) for field, number, kind, _ in _SCHEMA[name]}, name
