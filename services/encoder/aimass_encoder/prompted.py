"""Texts of one call, each with the prompt it is to have. Knows no model and no wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PromptedTexts:
    """Texts, and the names of the prompts that are put before them."""

    texts: Sequence[str]
    """A text that is bad by itself fails its own result, not the call."""
    prompt_names: Sequence[str]
    """One for each text; empty for none."""
    fields: Sequence[str]
    """The wire's name of each text, for error messages."""
    list_field: str
    """The wire's name of all of them."""
    prompt_fields: Sequence[str] = ("options.prompt_name",)
    """The wire's names of the prompts' names: of queries, and of all other texts."""
    num_queries: int = 0
    """Texts at the beginning that are queries."""
    deadline_s: float | None = None
    """On `time.monotonic`: past it, waiting texts are dropped and the call fails."""

    def prompt_field(self, index: int) -> str:
        """Return the wire's name of the prompt's name of text number `index`."""
        return self.prompt_fields[0 if index < self.num_queries else -1]
