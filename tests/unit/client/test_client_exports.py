"""The public face of the client package."""

from __future__ import annotations

import inspect

import aimass
from aimass import errors


def test_all_is_sorted_and_every_name_is_there() -> None:
    assert aimass.__all__ == sorted(aimass.__all__)
    assert all(hasattr(aimass, name) for name in aimass.__all__)


def test_every_public_object_of_the_package_is_exported() -> None:
    public = {
        name
        for name, value in vars(aimass).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }

    assert public == set(aimass.__all__)


def test_every_exported_class_and_function_is_documented() -> None:
    documentable = [
        value
        for name in aimass.__all__
        if inspect.isclass(value := getattr(aimass, name)) or inspect.isfunction(value)
    ]

    assert documentable
    assert [value for value in documentable if not inspect.getdoc(value)] == []


def test_every_error_is_a_kind_of_rpc_error() -> None:
    raised = [
        value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)
    ]

    assert len(raised) > 10
    assert all(issubclass(value, errors.RpcError) for value in raised)
