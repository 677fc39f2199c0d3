"""Lets in callers whose API key is known. Keys are kept as SHA-256 digests only.

A key is long and random, so a plain digest of it tells nothing; it is not a password.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from pathlib import Path

from aimass_serving.call import Call
from aimass_serving.errors import BadConfig, Unauthenticated
from aimass_serving.interceptors.layering import Proceed, ServicerContext

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SCHEME = "bearer "


class Authentication:
    """Layer that asks for `authorization: Bearer <key>` and compares its digest in constant time."""

    def __init__(self, digests: Sequence[str]) -> None:
        self._digests = tuple(digests)

    async def __call__(self, call: Call, context: ServicerContext, proceed: Proceed) -> None:
        header = call.metadata.get("authorization", "")
        if not header.lower().startswith(_SCHEME):
            raise Unauthenticated(detail="expected metadata `authorization: Bearer <API key>`")
        if not self._is_known(header[len(_SCHEME) :].strip()):
            raise Unauthenticated(detail="the API key is not known here")
        await proceed()

    def _is_known(self, key: str) -> bool:
        digest = hashlib.sha256(key.encode()).hexdigest()
        return any(hmac.compare_digest(digest, known) for known in self._digests)


def read_api_keys(file: Path) -> list[str]:
    """Read SHA-256 digests, one a line; `#` starts a comment. Raises `BadConfig`."""
    try:
        lines = [line.partition("#")[0].strip() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig("api_keys", expected="a readable text file", got=str(file)) from error
    digests = [line for line in lines if line]
    if not digests or not all(_DIGEST.fullmatch(digest) for digest in digests):
        raise BadConfig(
            "api_keys", expected="lower-case SHA-256 digests, one a line, at least one", got=str(file)
        )
    return digests
