"""Which schemas have an instance that ends."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from aimass_generation.json_schema import check_json_schema
from aimass_serving.errors import InvalidField

LEAF = {"type": "integer"}


def node(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": sorted(properties)}


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"type": "array", "items": {"$ref": "#"}},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 0},
        {"anyOf": [node(next={"$ref": "#"}), {"type": "null"}]},
        node(next={"anyOf": [{"$ref": "#"}, {"type": "null"}]}),
        {"$ref": "#/$defs/a", "$defs": {"a": node(b={"$ref": "#/$defs/b"}), "b": LEAF}},
        {"$ref": "#/$defs/a~1b", "$defs": {"a/b": LEAF}},
        {"type": "array", "prefixItems": [LEAF], "items": {"$ref": "#"}, "minItems": 1},
        {"const": {"$ref": "#"}},
    ],
)
def test_schema_that_can_end_is_let_through(schema: Any) -> None:
    check_json_schema(json.dumps(schema), field="f")


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        node(next={"$ref": "#"}),
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "array", "prefixItems": [LEAF, {"$ref": "#"}], "minItems": 2},
        {"anyOf": [node(a={"$ref": "#"}), node(b={"$ref": "#"})]},
        {"allOf": [{"type": "object"}, node(a={"$ref": "#"})]},
        {
            "$ref": "#/$defs/a",
            "$defs": {"a": node(b={"$ref": "#/$defs/b"}), "b": node(a={"$ref": "#/$defs/a"})},
        },
    ],
)
def test_schema_that_demands_itself_is_refused(schema: Any) -> None:
    with pytest.raises(InvalidField, match="no end"):
        check_json_schema(json.dumps(schema), field="f")


def test_long_chain_of_references_costs_a_bounded_time() -> None:
    """Each round over all definitions settles one: without a bound the work is the cube of the size."""
    definitions = {
        f"d{i:03}": {"allOf": [*[LEAF] * 200, {"$ref": f"#/$defs/d{i + 1:03}"}]} for i in range(200)
    }
    schema = {"$defs": definitions | {"d200": LEAF}, "$ref": "#/$defs/d000"}
    started_s = time.monotonic()
    check_json_schema(json.dumps(schema), field="f")
    assert time.monotonic() - started_s < 5
