"""Typed client of the aimass services."""
