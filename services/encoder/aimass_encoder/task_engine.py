"""What the engines of all tasks have in common: a life, and limits. Must not know any task."""

from __future__ import annotations

from aimass.model.v1.model_service_pb2 import ModelLimits

from aimass_encoder.pipeline import PipelineStats
from aimass_encoder.text_encoder import TextEncoder


class TaskEngine:
    """One model for one task. Lives on the event loop; tokenising and computing run in threads."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder

    @property
    def limits(self) -> ModelLimits:
        """What a request must stay within."""
        return ModelLimits(
            max_tokens=self._encoder.max_tokens, max_batch_items=self._encoder.config.max_batch_items
        )

    @property
    def execution_provider(self) -> str:
        """ONNX Runtime execution provider that runs the model."""
        return self._encoder.execution_provider

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for a batch."""
        return self._encoder.pipeline.queued_tokens

    def stats(self) -> PipelineStats:
        """Return the counters of what was computed and what was dropped."""
        return self._encoder.stats()

    def start(self) -> None:
        """Start the compute thread."""
        self._encoder.start()

    async def drain(self) -> None:
        """Take no new work and return when all work is done."""
        await self._encoder.drain()

    def close(self) -> None:
        """Stop at once: work that waits fails. Blocking; may be called twice."""
        self._encoder.close()
