"""Where the library of our own operators is, which ONNX Runtime loads, and what it needs of a processor.

The operators are written in C++, in `native/`. Must not know ONNX Runtime's Python interface: sessions are
opened in `aimass_serving.session`.
"""

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

REQUIRED_INSTRUCTIONS = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "fma"})
"""Flags that /proc/cpuinfo must list where the library is to be loaded."""
OPERATORS = ("MatMulNBits", "GroupQueryAttention")
"""Operators of the domain com.microsoft whose place the library's take."""
THREADS_ENTRY = "aimass.num_threads"
"""The config entry of a session that tells the operators its number of threads."""


def library() -> Path | None:
    """Return the library to register with a session; None when the package was built without."""
    files = (Path(__file__).with_name(f"_native{suffix}") for suffix in EXTENSION_SUFFIXES)
    return next((file for file in files if file.exists()), None)
