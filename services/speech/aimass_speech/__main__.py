"""`python -m aimass_speech`: the speech service."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from aimass_serving.registry import HostedEngine
from aimass_serving.service import ServicePlan, run_service

from aimass_speech.config import SpeechConfig
from aimass_speech.loader import TASKS, load_engine
from aimass_speech.servicer import register

PLAN: ServicePlan[HostedEngine] = ServicePlan(
    name="speech",
    default_port=50053,
    task=TASKS[0],
    further_tasks=TASKS[1:],
    load=load_engine,
    register=register,
    configs=(SpeechConfig,),
    max_receive_bytes=64 * 2**20,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; return the exit code."""
    return run_service(PLAN, argv)


if __name__ == "__main__":
    sys.exit(main())
