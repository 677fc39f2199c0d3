"""Judges JSON schemas before they are compiled: are they schemas, and can an instance of them ever end.

A schema that demands itself, such as a list of at least one such list, is satisfied by no text: a model held
to it would open brackets until it is cut short. Knows no tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from aimass_serving.errors import InvalidField

_MAX_JUDGEMENTS = 50_000
"""Schemas within the schema that are looked at; after that, the answer is in doubt."""
_LOCAL = "#"


def check_json_schema(text: str, *, field: str) -> None:
    """Raise `InvalidField` for a text that is no JSON schema, or a schema that demands itself without end.

    Whether single keywords contradict each other is left to the compiler.
    """
    try:
        schema = json.loads(text)
        if not isinstance(schema, dict | bool):
            raise InvalidField(field, expected="a JSON schema: an object or a boolean", got=schema)
        can_end = isinstance(schema, bool) or _Finiteness(schema).holds
    except RecursionError as error:
        raise InvalidField(field, expected="a JSON schema that is not nested so deep", got=text) from error
    except ValueError as error:
        raise InvalidField(field, expected="a JSON schema", got=str(error)) from error
    if not can_end:
        raise InvalidField(
            field, expected="a JSON schema that some text satisfies", got="one that has no end"
        )


class _Finiteness:
    """Whether a schema has a finite instance: the least fixed point over its references."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._finite: set[str] = set()
        self._num_left = _MAX_JUDGEMENTS
        references = sorted(set(_references(root)))
        has_grown = True
        while has_grown:
            new = {
                ref for ref in references if ref not in self._finite and self._is_finite(self._target(ref))
            }
            self._finite |= new
            has_grown = bool(new)

    @property
    def holds(self) -> bool:
        return self._is_finite(self._root)

    def _is_finite(self, schema: Any) -> bool:
        """Judge by what is demanded; where in doubt, say yes."""
        self._num_left -= 1
        if not isinstance(schema, dict) or self._num_left < 0:
            return True
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference not in self._finite:
            return False
        for key in ("anyOf", "oneOf"):
            branches = schema.get(key)
            if isinstance(branches, list) and branches and not any(map(self._is_finite, branches)):
                return False
        return all(map(self._is_finite, _demanded(schema)))

    def _target(self, reference: str) -> Any:
        """Return what a reference within the schema points to; None, which ends, for any other."""
        if not reference.startswith(_LOCAL):
            return None
        place: Any = self._root
        for step in reference.removeprefix(_LOCAL).split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(place, list) and key.isdecimal() and int(key) < len(place):
                place = place[int(key)]
            elif isinstance(place, dict) and key in place:
                place = place[key]
            else:
                return None
        return place


def _demanded(schema: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the schemas that every instance of one must also satisfy, in whole or in a part."""
    all_of, properties = schema.get("allOf"), schema.get("properties")
    yield from all_of if isinstance(all_of, list) else ()
    required = schema.get("required")
    if schema.get("type") == "object" and isinstance(required, list) and isinstance(properties, dict):
        yield from (properties.get(name) for name in required if isinstance(name, str))
    least, first = schema.get("minItems"), schema.get("prefixItems")
    if schema.get("type") == "array" and isinstance(least, int):
        prefix = first if isinstance(first, list) else []
        yield from prefix[:least]
        if least > len(prefix):
            yield schema.get("items")


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        reference = node.get("$ref")
        if isinstance(reference, str):
            yield reference
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _references(child)
