"""The classification service in Python. Knows the RPCs and their messages, and nothing of connections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeAlias

from aimass.channel import Connection, ConnectionOptions, ServiceClient
from aimass.classification.v1 import classification_service_pb2 as pb
from aimass.classification.v1 import classification_service_pb2_grpc as pb_grpc
from aimass.classification_options import ClassifyOptions
from aimass.classifications import TextClasses, text_classes_of
from aimass.wire import refusing

TextOrPair: TypeAlias = str | tuple[str, str]
"""A text, or a pair of texts that the model reads together."""


class ClassificationClient(ServiceClient):
    """Tells what texts are. Thread-safe; close it, or use it in a `with` block.

    Every method raises `aimass.errors.RpcError` or one of its kinds. `deadline_s` counts from the call, in
    seconds, and replaces the one of the connection's options.
    """

    DEFAULT_ADDRESS: ClassVar[str] = "localhost:50052"

    def __init__(
        self, target: str | Connection | None = None, options: ConnectionOptions | None = None
    ) -> None:
        super().__init__(target, options)
        self._stub = pb_grpc.ClassificationServiceStub(self._connection.channel)

    def classify(
        self,
        inputs: Sequence[TextOrPair],
        *,
        model: str,
        options: ClassifyOptions | None = None,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> TextClasses:
        """Return the labels of each text, or pair of texts, and why some may have none."""
        request = pb.ClassifyTextRequest(options=(options or ClassifyOptions()).message())
        set_model(request, model, request_id)
        for index, item in enumerate([inputs] if isinstance(inputs, str) else inputs):
            with refusing(f"inputs[{index}]"):
                request.inputs.append(text_input_pb(item))
        return text_classes_of(self._connection.call(self._stub.ClassifyText, request, deadline_s=deadline_s))


def set_model(request: pb.ClassifyTextRequest, model: str, request_id: str) -> None:
    """Say which model is meant, and the caller's name for the request."""
    with refusing("model"):
        request.model = model
    with refusing("request_id"):
        request.request_id = request_id


def text_input_pb(item: TextOrPair) -> pb.TextInput:
    """Return a text, or a pair of texts, as it travels."""
    return pb.TextInput(text=item) if isinstance(item, str) else pb.TextInput(text=item[0], text_pair=item[1])
