"""Between Python values and protobuf fields. Knows no service.

A value that no message can hold (a number too large, text that is not Unicode) is refused here, by field
name, with the same error the server would send.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from google.protobuf.message import Message

from aimass.errors import InvalidRequest


@contextmanager
def refusing(field: str) -> Iterator[None]:
    """Turn protobuf's refusal of a value into an `InvalidRequest` that names the field."""
    try:
        yield
    except (TypeError, ValueError, OverflowError) as cause:
        raise InvalidRequest.of_field(field, str(cause)) from cause


def set_fields(message: Message, values: object, names: Iterable[str], *, path: str = "") -> None:
    """Copy the named attributes of `values` that are not None into the fields of the same names."""
    for name in names:
        value = getattr(values, name)
        if value is None:
            continue
        with refusing(path + name):
            _assign(message, name, value)


def _assign(message: Message, name: str, value: Any) -> None:
    if isinstance(value, tuple | list):
        getattr(message, name).extend(value)
    elif isinstance(value, Mapping):
        getattr(message, name).update(value)
    else:
        setattr(message, name, value)


class ModelRequest(Protocol):
    """What the requests to all models have in common."""

    model: str
    request_id: str


def set_model(request: ModelRequest, model: str, request_id: str) -> None:
    """Say which model is meant, and the caller's name for the request."""
    with refusing("model"):
        request.model = model
    with refusing("request_id"):
        request.request_id = request_id


def extend_texts(field: MutableSequence[str], texts: Sequence[str], name: str) -> None:
    """Add texts to a request, one by one, so that a bad one is named. One text alone is a list of one."""
    for index, text in enumerate([texts] if isinstance(texts, str) else texts):
        with refusing(f"{name}[{index}]"):
            field.append(text)


class EnumNames(Protocol):
    """A generated enum: its numbers and their names."""

    def values(self) -> Collection[Any]: ...
    def Name(self, number: Any) -> str: ...  # noqa: N802 - protobuf's name


def enum_word(kind: EnumNames, prefix: str, number: int) -> str:
    """Return the name of an enum's value in lower case, without its prefix.

    A number newer than this client is `unspecified`.
    """
    return kind.Name(number).removeprefix(prefix).lower() if number in kind.values() else "unspecified"
