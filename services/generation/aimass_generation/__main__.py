"""`python -m aimass_generation`: the generation service as a process."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from aimass.model.v1.manifest_pb2 import TASK_TEXT2TEXT_GENERATION, TASK_TEXT_GENERATION
from aimass_decoding.config import EngineConfig
from aimass_serving.service import ServicePlan, run_service

from aimass_generation.config import GenerationConfig
from aimass_generation.engine import GenerationEngine
from aimass_generation.loader import load_engine
from aimass_generation.servicer import register

PLAN: ServicePlan[GenerationEngine] = ServicePlan(
    name="generation",
    default_port=50051,
    task=TASK_TEXT_GENERATION,
    further_tasks=(TASK_TEXT2TEXT_GENERATION,),
    load=load_engine,
    register=register,
    configs=(GenerationConfig, EngineConfig),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; return the exit code."""
    return run_service(PLAN, argv)


if __name__ == "__main__":
    sys.exit(main())
