"""The models that are benchmarked, and stores that hold them: exported once, anew when an exporter changes.

Knows no benchmark and no peer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PRECISIONS = ("fp32", "int8")
INT4 = "int4"
"""Of trained language models only, and in runs of its own."""


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A model to measure."""

    name: str
    """What it is served as, and the value of `--model`."""
    title: str
    find: Callable[[], str]
    """Returns what the exporter reads: a name of the catalogue, or a folder."""
    is_trained: bool = True
    """Random weights cost as much as real ones, but say nothing about accuracy."""

    def store(self, precision: str) -> Path:
        """Return a store that holds the model at a precision, and nothing else."""
        from aimass_exporters.testing import cached_export

        return cached_export(self.find(), name=self.served_name(precision), precision=precision)

    def drafted_store(self) -> Path:
        """Return a store that holds the model in fp32 with an int8 graph that drafts for it."""
        from aimass_exporters.testing import cached_drafted_export

        return cached_drafted_export(self.find(), name=self.name)

    def served_name(self, precision: str) -> str:
        """Return the name the model has in its store."""
        return self.name if precision == "fp32" else f"{self.name}-{precision}"


def _random_gpt2() -> str:
    from aimass_exporters.testing import cached_checkpoint, gpt2_config

    return str(cached_checkpoint(gpt2_config()))


SMOLLM2 = BenchModel("smollm2-135m-instruct", "SmolLM2-135M-Instruct", lambda: "smollm2-135m-instruct")
GPT2 = BenchModel("gpt2-124m", "GPT-2 124M (random weights)", _random_gpt2, is_trained=False)
MINILM = BenchModel("all-minilm-l6-v2", "all-MiniLM-L6-v2", lambda: "all-minilm-l6-v2")

LANGUAGE_MODELS = {model.name: model for model in (SMOLLM2, GPT2)}
