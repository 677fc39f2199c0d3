"""What a text sounds like: its words without capitals and marks. Pure."""

from __future__ import annotations


def spoken_form(text: str) -> str:
    """Return the words of a text in lower case, separated by one space; only letters, digits and `'` stay."""
    plain = "".join(c if c.isalnum() or c == "'" else " " for c in text.casefold())
    return " ".join(plain.split())
