"""What telemetry learns of one generation: attributes of the server span, and the `gen_ai.server.*` metrics.

Source of the names: OpenTelemetry semantic conventions for generative AI. Never the prompt, never the text.
"""

from __future__ import annotations

import time

from aimass_serving.telemetry import GenAiMeasurement, annotate, record_gen_ai

from aimass_generation.request import ChatPrompt, GenerationRequest
from aimass_generation.result import GenerationFinish

CANCELLED = "CANCELLED"


class Observation:
    """One generation under observation, from its arrival to its end. Owned by that generation."""

    def __init__(self, request: GenerationRequest, *, model: str) -> None:
        self._operation = "chat" if isinstance(request.prompt, ChatPrompt) else "text_completion"
        self._model = model
        self._started_s = time.perf_counter()
        self._finish: GenerationFinish | None = None
        self._finishes: list[GenerationFinish] = []
        self._error_type: str | None = CANCELLED
        annotate(
            {
                "gen_ai.operation.name": self._operation,
                "gen_ai.provider.name": "aimass",
                "gen_ai.request.model": model,
                "gen_ai.output.type": "text",
            }
        )
        if request.adapter:
            annotate({"aimass.adapter": request.adapter})

    def finished(self, finish: GenerationFinish) -> None:
        """Note how a text ended; the last of the request's texts to end counts in the metrics."""
        self._finish, self._error_type = finish, None
        self._finishes.append(finish)
        annotate(
            {
                "gen_ai.response.model": self._model,
                "gen_ai.response.finish_reasons": [ended.reason.value for ended in self._finishes],
                "gen_ai.usage.input_tokens": finish.usage.input_tokens,
                "gen_ai.usage.output_tokens": sum(ended.usage.output_tokens for ended in self._finishes),
            }
        )

    def failed(self, error_type: str) -> None:
        """Note why there is no text, or no end of it."""
        self._error_type = error_type

    def record(self) -> None:
        """Add the generation to the metrics, whatever its end. One nobody wanted any more is CANCELLED."""
        record_gen_ai(
            GenAiMeasurement(
                operation=self._operation,
                model=self._model,
                duration_s=time.perf_counter() - self._started_s,
                time_to_first_token_s=self._time_to_first_token_s(),
                time_per_output_token_s=self._time_per_output_token_s(),
                error_type=self._error_type,
            )
        )

    def _time_to_first_token_s(self) -> float | None:
        if self._finish is None or not self._finish.usage.output_tokens:
            return None
        return self._finish.timings.time_to_first_token_ms / 1000

    def _time_per_output_token_s(self) -> float | None:
        if self._finish is None or self._finish.usage.output_tokens < 2:
            return None
        return self._finish.timings.decode_ms / 1000 / (self._finish.usage.output_tokens - 1)
