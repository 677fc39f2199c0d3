"""Which models a running service tells of, and their health."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from aimass.model.v1 import manifest_pb2, model_service_pb2, model_service_pb2_grpc
from aimass_serving.bundle import Bundle
from aimass_serving.config import ServiceConfig
from aimass_serving.echo import PLAN, SERVICE_NAME, EchoEngine
from aimass_serving.errors import DeviceUnavailable, NoModelLoaded, NothingToServe, PortUnavailable
from aimass_serving.lifecycle import RunningService
from aimass_serving.plan import LoadContext, ServicePlan
from aimass_serving.session import Device
from aimass_serving.store import LocalStore
from aimass_serving.testing import running_service, write_bundle
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """`good` in two versions, `broken` altered, and `talk` for another service."""
    for version in (1, 2):
        write_bundle(tmp_path, "good", version=version)
    (write_bundle(tmp_path, "broken") / "model.onnx").write_bytes(b"altered!!")
    write_bundle(tmp_path, "talk", task=manifest_pb2.TASK_TEXT_GENERATION)
    return tmp_path


@pytest.fixture
async def channel(store: Path) -> AsyncIterator[grpc.aio.Channel]:
    async with (
        running_service(PLAN, store) as service,
        grpc.aio.insecure_channel(service.address) as opened,
    ):
        yield opened


async def health(channel: grpc.aio.Channel, name: str) -> int:
    reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
    return int(reply.status)


async def test_models_are_listed_with_state_and_detail(channel: grpc.aio.Channel) -> None:
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    models = (await stub.ListModels(model_service_pb2.ListModelsRequest())).models
    assert [(m.name, m.version, m.state) for m in models] == [
        ("broken", "1", model_service_pb2.MODEL_STATE_FAILED),
        ("good", "2", model_service_pb2.MODEL_STATE_READY),
        ("good", "1", model_service_pb2.MODEL_STATE_READY),
    ]
    broken, good, _ = models
    assert "model.onnx was altered" in broken.state_detail
    assert not broken.verified
    assert good.verified
    assert good.state_detail == ""
    assert good.execution_provider == "none"
    assert good.limits.max_tokens == 1
    assert good.family == "fake"
    assert good.parity.measures[0].name == "difference"
    assert good.precision == manifest_pb2.PRECISION_FP32


@pytest.mark.parametrize(("name", "version"), [("good", "2"), ("good@1", "1"), ("broken", "1")])
async def test_one_model_is_told_by_name_or_version(
    channel: grpc.aio.Channel, name: str, version: str
) -> None:
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    assert (await stub.GetModel(model_service_pb2.GetModelRequest(model=name))).model.version == version


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("nobody", grpc.StatusCode.NOT_FOUND),
        ("good@3", grpc.StatusCode.NOT_FOUND),
        ("", grpc.StatusCode.NOT_FOUND),
        ("talk", grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
async def test_model_that_is_not_served_is_an_error(
    channel: grpc.aio.Channel, name: str, code: grpc.StatusCode
) -> None:
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetModel(model_service_pb2.GetModelRequest(model=name))
    assert caught.value.code() is code


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("", SERVING),
        (SERVICE_NAME, SERVING),
        ("aimass.model.v1.ModelService", SERVING),
        ("aimass.model/good", SERVING),
        ("aimass.model/good@1", SERVING),
        ("aimass.model/broken", NOT_SERVING),
        ("aimass.model/broken@1", NOT_SERVING),
    ],
)
async def test_health_is_known_for_each_service_and_model(
    channel: grpc.aio.Channel, name: str, status: int
) -> None:
    assert await health(channel, name) == status


async def test_health_of_the_unknown_is_not_found(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health(channel, "aimass.model/nobody")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_is_not_serving_until_models_are_loaded(store: Path) -> None:
    may_load = asyncio.Event()
    loop = asyncio.get_running_loop()

    def load(bundle: Bundle, context: LoadContext) -> EchoEngine:
        asyncio.run_coroutine_threadsafe(may_load.wait(), loop).result()
        return EchoEngine()

    plan = ServicePlan(PLAN.name, PLAN.default_port, PLAN.task, load, PLAN.register)
    service = RunningService(plan, LocalStore(store), ServiceConfig().override({"port": 0}))
    await service.start()
    loading = asyncio.ensure_future(service.load())
    async with grpc.aio.insecure_channel(service.address) as channel:
        assert await health(channel, "") == NOT_SERVING
        assert await health(channel, "aimass.model/good") == NOT_SERVING
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        models = (await stub.ListModels(model_service_pb2.ListModelsRequest())).models
        assert model_service_pb2.MODEL_STATE_LOADING in [m.state for m in models]
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watch.read()).status == NOT_SERVING
        may_load.set()
        await loading
        assert (await watch.read()).status == SERVING
        assert await health(channel, SERVICE_NAME) == SERVING
        watch.cancel()
    await service.stop()


async def test_unverified_bundle_is_served_only_when_allowed_and_says_so(tmp_path: Path) -> None:
    (write_bundle(tmp_path, "m", files={"w.bin": b"a"}) / "w.bin").write_bytes(b"b")
    with pytest.raises(NoModelLoaded, match=r"m@1: bundle m@1: w\.bin was altered"):
        async with running_service(PLAN, tmp_path):
            pass
    async with (
        running_service(PLAN, tmp_path, allow_unverified=True) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        model = (await stub.GetModel(model_service_pb2.GetModelRequest(model="m"))).model
        assert not model.verified
        assert model.state == model_service_pb2.MODEL_STATE_READY
        assert model.state_detail == "not verified: w.bin was altered: its SHA-256 is not the manifest's"


async def test_store_without_models_is_a_start_failure(tmp_path: Path) -> None:
    for store in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(NothingToServe, match="holds no model for embedding"):
            async with running_service(PLAN, store):
                pass


async def test_cuda_without_cuda_is_a_start_failure(store: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="'cuda' is not available"):
        async with running_service(PLAN, store, device=Device.CUDA):
            pass


async def test_port_in_use_is_a_start_failure_that_names_it(store: Path) -> None:
    async with running_service(PLAN, store) as first:
        with pytest.raises(PortUnavailable, match=f"port {first.port}: address already in use"):
            async with running_service(PLAN, store, port=first.port):
                pass
        async with grpc.aio.insecure_channel(first.address) as channel:
            assert await health(channel, "") == SERVING


async def listed_services(channel: grpc.aio.Channel) -> list[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    return [s.name async for reply in call for s in reply.list_services_response.service]


async def test_reflection_answers_only_when_switched_on(store: Path, channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await listed_services(channel)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    async with (
        running_service(PLAN, store, reflection=True) as service,
        grpc.aio.insecure_channel(service.address) as open_channel,
    ):
        assert set(await listed_services(open_channel)) == {
            SERVICE_NAME,
            "aimass.model.v1.ModelService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
