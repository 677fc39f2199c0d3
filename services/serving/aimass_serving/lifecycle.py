"""A service's life: open the port, load the models, serve, drain, stop. The same for every service.

Must not know what the service does (`plan`), nor signals and arguments (`service`).
"""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import Any, Generic

from aimass.model.v1 import model_service_pb2_grpc
from grpc_health.v1 import health_pb2_grpc

from aimass_serving import health_servicer, model_servicer
from aimass_serving.bundle import Bundle
from aimass_serving.compute import ComputePermit
from aimass_serving.config import ServiceConfig
from aimass_serving.errors import NoModelLoaded
from aimass_serving.health_servicer import HealthServicer, model_health_name
from aimass_serving.interceptors import access_log, errors, telemetry
from aimass_serving.interceptors.admission import Admission
from aimass_serving.interceptors.authentication import Authentication, read_api_keys
from aimass_serving.interceptors.layering import Layer
from aimass_serving.model_servicer import ModelServicer
from aimass_serving.plan import LoadContext, ServicePlan
from aimass_serving.registry import Catalogue, E, ModelRegistry, ServedModel, choose_models
from aimass_serving.server import add_reflection, build_server, listen
from aimass_serving.session import Device, resolve_device
from aimass_serving.store import BundleRef, ModelStore

MAX_CUDA_RUNS = 64
"""Runs that may be in progress at once on CUDA, where runs of several engines do not fight over cores."""

ENGINE_GRACE_S = 5.0
"""How long engines may take to end once no call is left: their work is over, only threads must join."""

logger = logging.getLogger(__name__)


class RunningService(Generic[E]):
    """One service in this process: created, `start`ed, `load`ed, `drain`ed. Lives on the event loop."""

    def __init__(self, plan: ServicePlan[E], store: ModelStore, config: ServiceConfig) -> None:
        self._plan = plan
        self._store = store
        self._config = config
        self._health = HealthServicer()
        self._admission = Admission(config.admission)
        self._server = build_server(
            config.server,
            self._layers(),
            max_receive_bytes=config.server.max_receive_bytes or plan.max_receive_bytes,
        )
        self._service_names: tuple[str, ...] = ()
        self.port = 0
        """The port it listens on, once started."""
        self.registry: ModelRegistry[E] = ModelRegistry(Catalogue((), ()), plan.tasks)

    @property
    def address(self) -> str:
        """`host:port` to connect to."""
        return f"{self._config.server.host}:{self.port}"

    @property
    def num_running(self) -> int:
        """Calls in progress."""
        return self._admission.num_running

    async def start(self) -> None:
        """Check what can be checked at once, then answer calls; models are not loaded yet.

        Raises `StartFailure`, `DeviceUnavailable`, `ModelNotFound`, `WrongTask`.
        """
        resolve_device(self._config.session)
        catalogue = await asyncio.to_thread(choose_models, self._store, self._plan.tasks, self._config.store)
        self.registry = ModelRegistry(catalogue, self._plan.tasks)
        self._add_services()
        self.port = listen(self._server, self._config.server, self._port_to_open())
        await self._server.start()

    async def load(self) -> None:
        """Load every model. Raises `NoModelLoaded` when none can be served."""
        await self.registry.load(self._open_bundle, self._load_engine, on_change=self._model_changed)
        models = self.registry.models()
        if not any(served.is_ready for served in models):
            raise NoModelLoaded((str(served.ref), served.detail) for served in models)
        for served in models:
            if not served.is_ready:
                logger.error("model %s is not served: %s", served.ref, served.detail)
        self._health.update(dict.fromkeys((health_servicer.OVERALL, *self._service_names), True))

    async def drain(self, *, delay_s: float, grace_s: float) -> None:
        """End in order: NOT_SERVING, wait, refuse new calls, finish those in progress, stop."""
        self._health.drain()
        await asyncio.sleep(delay_s)
        self._admission.refuse_new()
        if not await self._admission.wait_idle(grace_s):
            logger.warning("%d calls did not finish in time and are cut", self._admission.num_running)
        await self.stop()

    async def stop(self) -> None:
        """Stop at once: calls in progress are cut, engines closed."""
        await self._server.stop(0)
        await self.registry.close(ENGINE_GRACE_S)

    def _layers(self) -> list[Layer]:
        layers: list[Layer] = [telemetry.record, access_log.log, errors.translate]
        if self._config.admission.api_keys is not None:
            layers.append(Authentication(read_api_keys(self._config.admission.api_keys)))
        return [*layers, self._admission]

    def _add_services(self) -> None:
        names = tuple(self._plan.register(self._server, self.registry))
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(self.registry), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._service_names = (*names, model_servicer.SERVICE_NAME)
        if self._config.server.reflection:
            add_reflection(self._server, (*self._service_names, health_servicer.SERVICE_NAME))
        models = [model_health_name(n) for served in self.registry.models() for n in _health_names(served)]
        self._health.update(dict.fromkeys((*self._service_names, *models), False))

    def _port_to_open(self) -> int:
        configured = self._config.server.port
        return self._plan.default_port if configured is None else configured

    def _open_bundle(self, ref: BundleRef) -> Bundle:
        return self._store.open(ref, allow_unverified=self._config.store.allow_unverified)

    def _load_engine(self, bundle: Bundle) -> E:
        return self._plan.load(bundle, self._load_context)

    @functools.cached_property
    def _load_context(self) -> LoadContext:
        is_on_cpu = resolve_device(self._config.session) is Device.CPU
        permit = ComputePermit(1 if is_on_cpu else MAX_CUDA_RUNS)
        return LoadContext(self._config.session, permit, self._config.extra)

    async def _model_changed(self, served: ServedModel[E]) -> None:
        if served.is_ready:
            logger.info("model %s is ready%s", served.ref, f" ({served.detail})" if served.detail else "")
        for name in _health_names(served):
            is_serving = any(m.is_ready for m in self.registry.models() if name in _health_names(m))
            self._health.update({model_health_name(name): is_serving})


def _health_names(served: ServedModel[Any]) -> tuple[str, str]:
    return served.name, str(served.ref)
