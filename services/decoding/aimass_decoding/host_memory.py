"""Buffers of a session on the CPU, seen as arrays. Knows nothing of what they hold."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from aimass_serving.session import DeviceBuffer
from numpy.typing import NDArray


def host_view(buffer: DeviceBuffer) -> NDArray[Any]:
    """Return a buffer in host memory as an array, without a copy. The buffer must outlive the array."""
    num_bytes = int(np.prod(buffer.shape)) * buffer.dtype.itemsize
    raw = (ctypes.c_uint8 * num_bytes).from_address(buffer.rows(0, buffer.shape[0]).ptr)
    return np.ctypeslib.as_array(raw).view(buffer.dtype).reshape(buffer.shape)
