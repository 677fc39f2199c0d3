"""`python -m aimass_encoder`: the encoder service."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from aimass.model.v1.manifest_pb2 import TASK_EMBEDDING
from aimass_serving.service import ServicePlan, run_service

from aimass_encoder.config import EncoderConfig
from aimass_encoder.loader import LOADERS, load_engine
from aimass_encoder.servicer import register
from aimass_encoder.task_engine import TaskEngine

PLAN: ServicePlan[TaskEngine] = ServicePlan(
    name="encoder",
    default_port=50052,
    task=TASK_EMBEDDING,
    further_tasks=tuple(LOADERS),
    load=load_engine,
    register=register,
    configs=(EncoderConfig,),
    max_receive_bytes=32 * 2**20,  # several images in one call
)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; return the exit code."""
    return run_service(PLAN, argv)


if __name__ == "__main__":
    sys.exit(main())
