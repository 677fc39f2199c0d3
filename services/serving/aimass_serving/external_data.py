"""Finds where an ONNX graph says its weights lie, without loading weights and without the `onnx` package.

Declares only the part of the ONNX schema that leads to tensors; the rest of the file is unknown fields.
Must not know bundles: whether a location is allowed is decided by the caller.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

EXTERNAL = 1
"""`TensorProto.DataLocation.EXTERNAL`."""

# message -> (field name, number, type, whether repeated); numbers from onnx.proto
_SCHEMA: dict[str, tuple[tuple[str, int, str, bool], ...]] = {
    "ModelProto": (
        ("graph", 7, "GraphProto", False),
        ("training_info", 20, "TrainingInfoProto", True),
        ("functions", 25, "FunctionProto", True),
    ),
    "GraphProto": (
        ("node", 1, "NodeProto", True),
        ("initializer", 5, "TensorProto", True),
        ("sparse_initializer", 15, "SparseTensorProto", True),
    ),
    "TrainingInfoProto": (
        ("initialization", 1, "GraphProto", False),
        ("algorithm", 2, "GraphProto", False),
    ),
    "FunctionProto": (("node", 7, "NodeProto", True), ("attribute_proto", 11, "AttributeProto", True)),
    "NodeProto": (("attribute", 5, "AttributeProto", True),),
    "AttributeProto": (
        ("t", 5, "TensorProto", False),
        ("g", 6, "GraphProto", False),
        ("tensors", 10, "TensorProto", True),
        ("graphs", 11, "GraphProto", True),
        ("sparse_tensor", 22, "SparseTensorProto", False),
        ("sparse_tensors", 23, "SparseTensorProto", True),
    ),
    "SparseTensorProto": (("values", 1, "TensorProto", False), ("indices", 2, "TensorProto", False)),
    "TensorProto": (
        ("name", 8, "string", False),
        ("external_data", 13, "StringStringEntryProto", True),
        ("data_location", 14, "int32", False),
    ),
    "StringStringEntryProto": (("key", 1, "string", False), ("value", 2, "string", False)),
}
_SCALARS = {
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "int32": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
}


@dataclass(frozen=True, slots=True)
class ExternalTensor:
    """One tensor whose values lie in another file, as the graph states it, unchecked."""

    name: str
    location: str
    offset: str
    length: str


def external_tensors(graph: bytes) -> list[ExternalTensor]:
    """Return every tensor of a serialised ONNX model that is stored outside it, in nested graphs too.

    Raises `ValueError` when the bytes are not an ONNX model.
    """
    model = _model_class()()
    try:
        model.ParseFromString(graph)
    except DecodeError as error:
        raise ValueError("not an ONNX model") from error
    if not model.HasField("graph"):
        raise ValueError("not an ONNX model: it has no graph")
    return list(_walk(model))


def _walk(message: Message) -> Iterator[ExternalTensor]:
    if message.DESCRIPTOR.name == "TensorProto":
        yield from _external(message)
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in value if field.is_repeated else (value,):
                yield from _walk(child)


def _external(tensor: Any) -> Iterator[ExternalTensor]:
    if tensor.data_location != EXTERNAL and not tensor.external_data:
        return
    entries = {entry.key: entry.value for entry in tensor.external_data}
    yield ExternalTensor(
        tensor.name, entries.get("location", ""), entries.get("offset", "0"), entries.get("length", "0")
    )


def _model_class() -> type[Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_file_descriptor())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("onnx_locations.ModelProto"))


def _file_descriptor() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="onnx_locations.proto", package="onnx_locations", syntax="proto2"
    )
    for message_name, fields in _SCHEMA.items():
        message = file.message_type.add(name=message_name)
        for name, number, type_name, is_repeated in fields:
            _add_field(message, name, number, type_name=type_name, is_repeated=is_repeated)
    return file


def _add_field(
    message: descriptor_pb2.DescriptorProto, name: str, number: int, *, type_name: str, is_repeated: bool
) -> None:
    kinds = descriptor_pb2.FieldDescriptorProto
    field = message.field.add(name=name, number=number)
    field.label = kinds.LABEL_REPEATED if is_repeated else kinds.LABEL_OPTIONAL
    field.type = _SCALARS.get(type_name, kinds.TYPE_MESSAGE)
    if type_name not in _SCALARS:
        field.type_name = f".onnx_locations.{type_name}"
