"""Flags that several commands have, declared once: a command takes one value that is made of what they say.

Must not know any flag.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, get_type_hints

Flags = Mapping[str, inspect.Parameter]


def flags_of(function: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a function, or fields of a dataclass, as typer reads them."""
    hints = get_type_hints(function, include_extras=True)
    found = inspect.signature(function).parameters
    return {
        name: parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in found.items()
    }


def with_flags(
    command: Callable[..., None], argument: str, flags: Flags, value: Callable[[dict[str, Any]], object]
) -> Callable[..., None]:
    """Return a command with these flags in place of its argument, which `value` makes of what they say."""
    own = flags_of(command)
    del own[argument]

    @wraps(command)
    def run(**values: Any) -> None:
        said = {name: values.pop(name) for name in flags}
        command(**values, **{argument: value(said)})

    parameters = [*own.values(), *flags.values()]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
