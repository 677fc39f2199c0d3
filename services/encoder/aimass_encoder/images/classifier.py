"""Image files in, labels out: decodes in threads, has batches computed. Must not know the wire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import numpy as np
from aimass_serving.errors import AimassError, InvalidField, Overloaded
from aimass_serving.telemetry import emit_phase
from numpy.typing import NDArray

from aimass_encoder.config import EncoderConfig
from aimass_encoder.head import RowHead
from aimass_encoder.images.decoding import DecodedImage, Framing, decode_image
from aimass_encoder.images.request import ClassifiedImage, ImageReply, ImageRequest
from aimass_encoder.images.runner import ImageRow, ImageRunner
from aimass_encoder.labels import ProblemType, check_labels, ranked, scores_of
from aimass_encoder.pipeline import BatchPipeline, EncodeTimes
from aimass_encoder.runner import LOGITS
from aimass_encoder.task_engine import TaskEngine
from aimass_encoder.text_classifier import MULTI_LABEL_THRESHOLD, ClassifierSpec
from aimass_encoder.text_encoder import good, merged, phase_timings

DEFAULT_TOP_K = 5
_RETRY_S = 1.0


class ImageClassifier(TaskEngine):
    """One image classifier."""

    def __init__(
        self,
        runner: ImageRunner,
        framing: Framing,
        spec: ClassifierSpec,
        *,
        model: str,
        config: EncoderConfig,
        permit: AbstractContextManager[None],
    ) -> None:
        limits = config.image_limits(runner.execution_provider)
        pipeline = BatchPipeline(runner, limits, model=model, permit=permit)
        super().__init__(
            pipeline,
            execution_provider=runner.execution_provider,
            max_batch_items=config.max_batch_images,
        )
        self.spec = spec
        self._framing = framing
        self._head = RowHead(LOGITS, model)
        self._max_waiting_bytes = config.max_decoding_bytes
        self._waiting_bytes = 0
        self._threads = ThreadPoolExecutor(
            config.num_tokenizer_threads, thread_name_prefix=f"decode-image-{model}"
        )

    def close(self) -> None:
        """Stop at once: work that waits fails. Blocking; may be called twice."""
        super().close()
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def classify(self, request: ImageRequest) -> ImageReply:
        """Return one result for each image, in order; a bad image has an error in its place.

        Raises `InvalidField` for labels this model does not have or too many images, `Overloaded`,
        `DeadlineExceeded`, `Draining`.
        """
        arrived_ns = time.time_ns()
        self._check(request)
        self.pipeline.check_admission(deadline_s=request.deadline_s)
        decoded = await self._decode(request.images)
        readings, times = await self._compute(good(decoded), request.deadline_s)
        images = [
            reading if isinstance(reading, AimassError) else self._classified(reading, image, request)
            for reading, image in zip(readings, good(decoded), strict=True)
        ]
        timings = phase_timings(arrived_ns, times, time.time_ns())
        return ImageReply(merged(decoded, images), self.spec.problem_type, timings)

    def _check(self, request: ImageRequest) -> None:
        if len(request.images) > self._max_batch_items:
            expected = f"at most {self._max_batch_items} images"
            raise InvalidField("images", expected=expected, got=len(request.images))
        check_labels(request.labels, self.spec.labels)

    async def _decode(self, images: Sequence[bytes]) -> Sequence[DecodedImage | AimassError]:
        start_ns, num_bytes = time.time_ns(), sum(map(len, images))
        if self._waiting_bytes >= self._max_waiting_bytes:
            detail = f"{self._waiting_bytes} bytes of images wait to be decoded"
            raise Overloaded(retry_after_s=_RETRY_S, detail=detail)
        self._waiting_bytes += num_bytes
        loop = asyncio.get_running_loop()
        try:
            # One after the other: a call takes no more than one thread from the others.
            return [
                await loop.run_in_executor(self._threads, self._decode_one, i, image)
                for i, image in enumerate(images)
            ]
        finally:
            self._waiting_bytes -= num_bytes
            emit_phase("decode", start_ns, time.time_ns())

    def _decode_one(self, index: int, image: bytes) -> DecodedImage | AimassError:
        try:
            return decode_image(image, self._framing, field=f"images[{index}]")
        except AimassError as error:
            return error

    async def _compute(
        self, images: Sequence[DecodedImage], deadline_s: float | None
    ) -> tuple[Sequence[NDArray[np.float32] | AimassError], EncodeTimes]:
        if not images:
            return [], EncodeTimes.none()
        rows = [ImageRow(image.pixels) for image in images]
        return await self.pipeline.run(rows, self._head, deadline_s=deadline_s)

    def _classified(
        self, logits: NDArray[np.float32], image: DecodedImage, request: ImageRequest
    ) -> ClassifiedImage:
        is_single = self.spec.problem_type is ProblemType.SINGLE_LABEL
        default_threshold = None if is_single else MULTI_LABEL_THRESHOLD
        labels = ranked(
            scores_of(logits, self.spec.problem_type),
            self.spec.labels,
            top_k=request.top_k or (DEFAULT_TOP_K if is_single else None),
            threshold=default_threshold if request.threshold is None else request.threshold,
            among=request.labels,
        )
        return ClassifiedImage(labels, image.width, image.height)
