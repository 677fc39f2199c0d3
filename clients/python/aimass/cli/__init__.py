"""The `aimass` command. Each command is a module; other distributions add theirs by entry points."""

from aimass.cli.application import app, main

__all__ = ["app", "main"]
