"""Which services are installed beside this package. Imports none of them."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

SERVICES_GROUP = "aimass.services"
"""Entry-point group of the services; each entry is the `main` of a module that also holds `PLAN`."""


def installed_services() -> dict[str, EntryPoint]:
    """Return the entry point of every installed service, by name."""
    return {entry.name: entry for entry in sorted(entry_points(group=SERVICES_GROUP))}
