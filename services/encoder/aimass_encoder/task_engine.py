"""What the engines of all tasks have in common: a life, and limits. Must not know any task."""

from __future__ import annotations

from aimass.model.v1.model_service_pb2 import ModelLimits

from aimass_encoder.pipeline import BatchPipeline, PipelineStats
from aimass_encoder.text_encoder import TextEncoder


class TaskEngine:
    """One model for one task. Lives on the event loop; computing runs in threads."""

    def __init__(self, pipeline: BatchPipeline, *, execution_provider: str, max_batch_items: int) -> None:
        self.pipeline = pipeline
        self._execution_provider = execution_provider
        self._max_batch_items = max_batch_items

    @property
    def limits(self) -> ModelLimits:
        """What a request must stay within."""
        return ModelLimits(max_batch_items=self._max_batch_items)

    @property
    def execution_provider(self) -> str:
        """ONNX Runtime execution provider that runs the model."""
        return self._execution_provider

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for a batch; images and rows of tables count as one each."""
        return self.pipeline.queued_tokens

    def stats(self) -> PipelineStats:
        """Return the counters of what was computed and what was dropped."""
        return self.pipeline.stats()

    def start(self) -> None:
        """Start the compute thread."""
        self.pipeline.start()

    async def drain(self) -> None:
        """Take no new work and return when all work is done."""
        await self.pipeline.drain()

    def close(self) -> None:
        """Stop at once: work that waits fails. Blocking; may be called twice."""
        self.pipeline.close()


class TextTaskEngine(TaskEngine):
    """One model that reads texts. Tokenising runs in threads too."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__(
            encoder.pipeline,
            execution_provider=encoder.execution_provider,
            max_batch_items=encoder.config.max_batch_items,
        )
        self._encoder = encoder

    @property
    def limits(self) -> ModelLimits:
        """What a request must stay within."""
        limits = ModelLimits(max_tokens=self._encoder.max_tokens)
        limits.MergeFrom(super().limits)
        return limits

    def close(self) -> None:
        """Stop at once: work that waits fails. Blocking; may be called twice."""
        self._encoder.close()
