"""onnxruntime-genai, greedy, on the model that its own builder makes of the same weights.

The shorter prompts of a batch are padded on the right: the library masks what follows the last token that is
not padding.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og
from numpy.typing import NDArray

from bench.measurement import Outcome
from bench.workload import Work, Workload


class Genai:
    """The model at each number of threads, opened when it is first asked for."""

    def __init__(self, *, folder: str, workload: Mapping[str, Any]) -> None:
        self._folder, self._workload = folder, Workload(**workload)
        config = json.loads((Path(folder) / "genai_config.json").read_text())
        self._pad_token_id = int(config["model"]["pad_token_id"])
        self._models: dict[int, Any] = {}

    def run(self, scenario: str, *, num_threads: int) -> Outcome:
        work, model = self._workload.of(scenario), self._model(num_threads)
        prompts = self._padded(work)
        start = time.perf_counter()
        rows = _generate(model, prompts, work)
        return work.outcome(rows, time.perf_counter() - start)

    def close(self) -> None:
        pass

    def _padded(self, work: Work) -> NDArray[np.int32]:
        """Return the prompts [streams, longest]."""
        rows = [[*row, *[self._pad_token_id] * (work.longest - len(row))] for row in work.prompts]
        return np.array(rows, np.int32)

    def _model(self, num_threads: int) -> Any:
        if num_threads not in self._models:
            config = og.Config(self._folder)
            options = {"intra_op_num_threads": num_threads}
            config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
            self._models[num_threads] = og.Model(config)
        return self._models[num_threads]


def _generate(model: Any, prompts: NDArray[np.int32], work: Work) -> list[list[int]]:
    """Return the new tokens of each prompt."""
    params = og.GeneratorParams(model)
    total = work.longest + work.new_tokens
    params.set_search_options(
        batch_size=len(prompts), do_sample=False, repetition_penalty=1.0, min_length=total, max_length=total
    )
    generator = og.Generator(model, params)
    generator.append_tokens(prompts)
    for _ in range(work.new_tokens):
        generator.generate_next_token()
    return [generator.get_sequence(i)[work.longest :].tolist() for i in range(len(prompts))]
