"""The peers of the generation benchmark: the same weights, the same prompts, greedy, as many new tokens.

Those that cannot mix lengths pad on the left. Timed is from token ids in to all tokens out; loading,
conversion and tokenisation are not. `num_threads` may change from run to run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.measurement import Outcome
from bench.workload import Work, Workload


class Transformers:
    """`transformers` generate on PyTorch, eager attention."""

    def __init__(self, *, folder: str, workload: Mapping[str, Any]) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._workload = Workload(**workload)
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )

    def run(self, scenario: str, *, num_threads: int) -> Outcome:
        import torch

        torch.set_num_threads(num_threads)
        return _hf_generate(self._model, self._workload.of(scenario))

    def close(self) -> None:
        pass


class Optimum:
    """optimum's `ORTModelForCausalLM` on ONNX Runtime's CPU provider, one session a number of threads."""

    def __init__(self, *, folder: str, workload: Mapping[str, Any]) -> None:
        self._workload = Workload(**workload)
        self._models = _OnePerThreads(lambda num_threads: _ort_model(folder, num_threads))

    def run(self, scenario: str, *, num_threads: int) -> Outcome:
        return _hf_generate(self._models.at(num_threads), self._workload.of(scenario))

    def close(self) -> None:
        pass


class CTranslate2:
    """CTranslate2's generator, batched by itself; `compute_type` is `float32` or `int8`."""

    def __init__(self, *, folder: str, compute_type: str, workload: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(Path(folder).with_name("transformers") / "tokenizer.json"))
        self._workload = Workload(**workload)
        self._generators = _OnePerThreads(lambda n: _ct2_generator(folder, compute_type, n))

    def run(self, scenario: str, *, num_threads: int) -> Outcome:
        work, generator = self._workload.of(scenario), self._generators.at(num_threads)
        tokens = [[self._tokenizer.id_to_token(i) for i in row] for row in work.prompts]
        start = time.perf_counter()
        results = generator.generate_batch(
            tokens,
            min_length=work.new_tokens,
            max_length=work.new_tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        seconds = time.perf_counter() - start
        return work.outcome([result.sequences_ids[0] for result in results], seconds)

    def close(self) -> None:
        pass


class _OnePerThreads:
    """Makes a model for each number of threads when it is first asked for, and keeps it."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make
        self._made: dict[int, Any] = {}

    def at(self, num_threads: int) -> Any:
        if num_threads not in self._made:
            self._made[num_threads] = self._make(num_threads)
        return self._made[num_threads]


def _ort_model(folder: str, num_threads: int) -> Any:
    import onnxruntime as ort
    from optimum.onnxruntime import ORTModelForCausalLM

    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    return ORTModelForCausalLM.from_pretrained(
        folder, session_options=options, provider="CPUExecutionProvider"
    )


def _ct2_generator(folder: str, compute_type: str, num_threads: int) -> Any:
    import ctranslate2

    return ctranslate2.Generator(
        folder, device="cpu", compute_type=compute_type, inter_threads=1, intra_threads=num_threads
    )


def _hf_generate(model: Any, work: Work) -> Outcome:
    """Generate for all prompts in one left-padded batch."""
    import torch

    pad_id, longest = model.generation_config.pad_token_id or 0, work.longest
    rows = [[pad_id] * (longest - len(row)) + list(row) for row in work.prompts]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in work.prompts]
    ids = torch.tensor(rows)  # [streams, longest]
    start = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.tensor(mask),
            do_sample=False,
            min_new_tokens=work.new_tokens,
            max_new_tokens=work.new_tokens,
            pad_token_id=pad_id,
        )
    seconds = time.perf_counter() - start
    return work.outcome(out[:, longest:].tolist(), seconds)
