"""Runs one service as a process: arguments, environment, logging, telemetry, signals, exit code."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aimass_serving.config import LogFormat, ServiceConfig, from_env
from aimass_serving.cpu import keep_blas_single_threaded
from aimass_serving.errors import AimassError, NothingToServe
from aimass_serving.installed import installed_services
from aimass_serving.lifecycle import RunningService
from aimass_serving.logs import LEVELS, configure_logging
from aimass_serving.plan import LoadContext, ServicePlan
from aimass_serving.ready import Announcement
from aimass_serving.session import Device
from aimass_serving.store import open_store
from aimass_serving.telemetry import configure_telemetry, shutdown_telemetry

__all__ = ["LoadContext", "ServicePlan", "run_service"]

logger = logging.getLogger(__name__)


def run_service(plan: ServicePlan[Any], argv: Sequence[str] | None = None) -> int:
    """Run a service until SIGTERM or Ctrl-C, then drain. Return the exit code: 1 when it could not start."""
    options = vars(_parser(plan).parse_args(argv))
    announcement = Announcement(to_stdout=options.pop("json"), file=options.pop("ready_file"))
    is_supervised = options.pop("supervised")
    announcement.withdraw()
    try:
        config = _config(plan, options)
        configure_logging(config.log)
        configure_telemetry(f"aimass-{plan.name}")
        keep_blas_single_threaded()
        asyncio.run(_serve(plan, config, announcement, is_supervised=is_supervised))
    except AimassError as error:
        if is_supervised and isinstance(error, NothingToServe):
            logger.info("not needed: %s", error)
            announcement.make({"service": plan.name, "address": None, "models": []})
            return 0
        sys.stderr.write(f"aimass {plan.name}: {error}\n")
        return 1
    finally:
        shutdown_telemetry()
    return 0


async def _serve(
    plan: ServicePlan[Any], config: ServiceConfig, announcement: Announcement, *, is_supervised: bool
) -> None:
    signals = _Signals()
    if is_supervised:
        signals.include_end_of_stdin()
    service = RunningService(plan, open_store(config.store.store, cache=config.store.cache), config)
    try:
        await service.start()
        if await signals.interrupts(service.load()):
            return
        models = [str(served.ref) for served in service.registry.models() if served.is_ready]
        logger.info("%s is ready on %s with %s", plan.name, service.address, ", ".join(models))
        announcement.make(
            {"service": plan.name, "address": service.address, "models": models, "pid": os.getpid()}
        )
        interrupt = await signals.first()
        logger.info("draining after %s", interrupt.name)
        delay_s = 0.0 if interrupt is signal.SIGINT else config.lifecycle.drain_delay_s
        await signals.interrupts(service.drain(delay_s=delay_s, grace_s=config.lifecycle.drain_grace_s))
    finally:
        await service.stop()


class _Signals:
    """SIGTERM and SIGINT as awaitable events, in the order they come. Lives on the event loop."""

    def __init__(self) -> None:
        self._received: asyncio.Queue[signal.Signals] = asyncio.Queue()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._received.put_nowait, number)

    def include_end_of_stdin(self) -> None:
        """Take the end of standard input, a pipe from a parent process, for a SIGTERM."""
        loop, stdin = asyncio.get_running_loop(), sys.stdin.fileno()

        def read() -> None:
            if not os.read(stdin, 4096):
                loop.remove_reader(stdin)
                self._received.put_nowait(signal.SIGTERM)

        loop.add_reader(stdin, read)

    async def first(self) -> signal.Signals:
        """Wait for the next signal."""
        return await self._received.get()

    async def interrupts(self, work: Any) -> bool:
        """Do `work`; return True when a signal cut it short."""
        doing, interrupted = asyncio.ensure_future(work), asyncio.ensure_future(self._received.get())
        await asyncio.wait((doing, interrupted), return_when=asyncio.FIRST_COMPLETED)
        interrupted.cancel()
        if doing.done():
            doing.result()
            return False
        doing.cancel()
        await asyncio.wait((doing,))
        return True


def _config(plan: ServicePlan[Any], options: dict[str, Any]) -> ServiceConfig:
    config = from_env(
        os.environ, service=plan.name, configs=plan.configs, other_services=installed_services()
    )
    return config.override(options)


def _parser(plan: ServicePlan[Any]) -> argparse.ArgumentParser:
    """Return the options; those not given are absent, so that the environment's values stand."""
    parser = argparse.ArgumentParser(
        f"aimass serve {plan.name}",
        argument_default=argparse.SUPPRESS,
        epilog="Every setting can also be given as AIMASS_<NAME> in the environment.",
    )
    add = parser.add_argument
    add("--store", help="folder or URL of the model store")
    add("--port", type=int, help=f"port to listen on, 0 for a free one (default {plan.default_port})")
    add("--host", help="address to listen on (default 127.0.0.1)")
    add("--device", type=Device, choices=list(Device), help="where models run (default auto)")
    add("--num-threads", type=int, help="threads inside one operator (default: the usable cores)")
    add("--model", dest="models", action="append", help="serve only this model; may be repeated")
    add("--max-versions", type=int, help="newest versions of each model to serve, 0 for all (default 2)")
    add("--allow-unverified", action="store_true", help="serve altered or unproven bundles, and say so")
    add("--reflection", action="store_true", help="answer gRPC reflection")
    add("--tls-cert", type=Path, help="PEM certificate chain")
    add("--tls-key", type=Path, help="PEM private key")
    add("--tls-client-ca", type=Path, help="PEM certificates that sign clients; asks clients for theirs")
    add("--api-keys", type=Path, help="file with SHA-256 digests of API keys")
    add(
        "--drain-delay", dest="drain_delay_s", type=float, help="seconds of NOT_SERVING before refusing calls"
    )
    add("--drain-grace", dest="drain_grace_s", type=float, help="seconds that calls in progress may take")
    add("--log-level", choices=list(LEVELS), help="least important lines to log (default info)")
    add("--log-format", type=LogFormat, choices=list(LogFormat), help="text or json (default text)")
    add("--supervised", action="store_true", default=False, help=argparse.SUPPRESS)
    add("--ready-file", type=Path, default=None, help="write one line of JSON here when ready")
    add("--json", action="store_true", default=False, help="print one line of JSON when ready")
    return parser
