"""Reads the binary model file of CTranslate2: named arrays, and names that stand for others.

Source: `python/ctranslate2/specs/model_spec.py` of CTranslate2 (format version 6).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from aimass_exporters.errors import InvalidCheckpoint

FORMAT_VERSION = 6
_DTYPES: tuple[DTypeLike, ...] = (np.float32, np.int8, np.int16, np.int32, np.float16)


@dataclass(frozen=True, slots=True)
class Ct2Model:
    """The content of a model file."""

    spec: str
    """Name of the architecture, such as `WhisperSpec`."""
    arrays: Mapping[str, NDArray[Any]]
    """Read-only views of the file's bytes, aliases included."""


def read_ct2_model(path: Path) -> Ct2Model:
    """Read a model file. Raises `InvalidCheckpoint` when it is cut off or is not of this format."""
    reader = _Reader(path.read_bytes())
    try:
        version = reader.integer("I")
        if version != FORMAT_VERSION:
            raise InvalidCheckpoint(path, detail=f"expected format version {FORMAT_VERSION}, got {version}")
        spec = reader.text()
        reader.integer("I")  # revision of the architecture's specification
        arrays = dict(reader.array() for _ in range(reader.integer("I")))
        for _ in range(reader.integer("I")):
            alias, name = reader.text(), reader.text()
            arrays[alias] = arrays[name]
    except (struct.error, ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise InvalidCheckpoint(path, detail=f"not a CTranslate2 model: {error}") from error
    return Ct2Model(spec, arrays)


class _Reader:
    """Walks through the bytes of a file. Owns its place in them."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._place = 0

    def integer(self, kind: str) -> int:
        """Return an unsigned number: `B`, `H` or `I` as `struct` names them."""
        (value,) = struct.unpack_from(f"<{kind}", self._content, self._place)
        self._place += struct.calcsize(kind)
        return int(value)

    def text(self) -> str:
        """Return a string; the file ends it with a zero byte, which its length counts."""
        length = self.integer("H")
        text = self._content[self._place : self._place + length]
        if len(text) != length or not text.endswith(b"\0"):
            raise ValueError("a name is cut off")
        self._place += length
        return text[:-1].decode()

    def array(self) -> tuple[str, NDArray[Any]]:
        """Return a name and its array."""
        name = self.text()
        shape = [self.integer("I") for _ in range(self.integer("B"))]
        dtype = np.dtype(_DTYPES[self.integer("B")])
        num_bytes = self.integer("I")
        count = num_bytes // dtype.itemsize
        flat = np.frombuffer(self._content, dtype, count=count, offset=self._place)
        self._place += num_bytes
        return name, flat.reshape(shape)
