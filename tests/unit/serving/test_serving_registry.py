"""Which models a service serves, and which of them a request gets."""

from pathlib import Path

import pytest
from aimass.model.v1.manifest_pb2 import TASK_EMBEDDING, TASK_TEXT_GENERATION
from aimass_serving.bundle import Bundle
from aimass_serving.config import StoreConfig
from aimass_serving.echo import EchoEngine
from aimass_serving.errors import BadBundle, ModelNotFound, ModelNotReady, NothingToServe, WrongTask
from aimass_serving.registry import ModelRegistry, ModelState, ServedModel, choose_models
from aimass_serving.store import BundleRef, LocalStore
from aimass_serving.testing import write_bundle


def chosen(store: Path, **settings: object) -> list[str]:
    config = StoreConfig(**settings)  # type: ignore[arg-type] # settings by name
    return [str(ref) for ref in choose_models(LocalStore(store), [TASK_EMBEDDING], config).chosen]


async def loaded(store: Path, load: object = None) -> ModelRegistry[EchoEngine]:
    opened = LocalStore(store)
    catalogue = choose_models(opened, [TASK_EMBEDDING], StoreConfig())
    registry: ModelRegistry[EchoEngine] = ModelRegistry(catalogue, [TASK_EMBEDDING])

    async def ignore(served: ServedModel[EchoEngine]) -> None:
        return

    await registry.load(opened.open, load or (lambda bundle: EchoEngine()), on_change=ignore)  # type: ignore[arg-type] # a loader
    return registry


def test_newest_two_versions_of_each_name_are_served(tmp_path: Path) -> None:
    for name, version in [("a", 1), ("a", 2), ("a", 10), ("b", 1)]:
        write_bundle(tmp_path, name, version=version)
    assert chosen(tmp_path) == ["a@10", "a@2", "b@1"]
    assert chosen(tmp_path, max_versions=1) == ["a@10", "b@1"]
    assert chosen(tmp_path, max_versions=0) == ["a@10", "a@2", "a@1", "b@1"]


def test_named_models_are_served_alone(tmp_path: Path) -> None:
    for version in (1, 2, 3):
        write_bundle(tmp_path, "a", version=version)
    assert chosen(tmp_path, models=("a",)) == ["a@3"]
    assert chosen(tmp_path, models=("a@1", "a", "a@3")) == ["a@1", "a@3"]


def test_named_model_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    write_bundle(tmp_path, "a")
    with pytest.raises(ModelNotFound, match="'b' is not served here; available: a@1"):
        chosen(tmp_path, models=("b",))


def test_named_model_of_another_task_is_an_error(tmp_path: Path) -> None:
    write_bundle(tmp_path, "talk", task=TASK_TEXT_GENERATION)
    with pytest.raises(WrongTask, match="expected a model for embedding, got one for text generation"):
        chosen(tmp_path, models=("talk",))


def test_store_with_other_tasks_only_has_nothing_to_serve(tmp_path: Path) -> None:
    write_bundle(tmp_path, "talk", task=TASK_TEXT_GENERATION)
    with pytest.raises(NothingToServe, match=r"no model for embedding .*it holds: talk@1"):
        chosen(tmp_path)


async def test_name_alone_means_its_newest_ready_version(tmp_path: Path) -> None:
    write_bundle(tmp_path, "a", version=1)
    broken = write_bundle(tmp_path, "a", version=2)
    (broken / "model.onnx").write_bytes(b"altered")
    registry = await loaded(tmp_path)
    assert registry.get("a").version == "1"
    assert registry.get("a@1").version == "1"
    with pytest.raises(ModelNotReady, match=r"'a@2' is failed: .*altered"):
        registry.get("a@2")
    assert [served.state for served in registry.models()] == [ModelState.FAILED, ModelState.READY]


async def test_unknown_version_and_other_task_are_told_apart(tmp_path: Path) -> None:
    write_bundle(tmp_path, "a")
    write_bundle(tmp_path, "talk", task=TASK_TEXT_GENERATION)
    registry = await loaded(tmp_path)
    with pytest.raises(ModelNotFound):
        registry.get("a@9")
    with pytest.raises(ModelNotFound):
        registry.get("")
    for name in ("talk", "talk@1"):
        with pytest.raises(WrongTask):
            registry.get(name)


async def test_text_of_an_unexpected_load_error_stays_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_bundle(tmp_path, "a")

    def fail(bundle: Bundle) -> EchoEngine:
        raise RuntimeError("/secret/path")

    [served] = (await loaded(tmp_path, fail)).models()
    assert served.detail == "loading failed with RuntimeError; the server's log has the cause"
    assert served.bundle is not None
    assert "/secret/path" in caplog.text


async def test_unverified_bundle_says_so_when_ready(tmp_path: Path) -> None:
    bundle = Bundle(tmp_path, None, False, ("parity failed",))  # type: ignore[arg-type] # not read here
    served: ServedModel[EchoEngine] = ServedModel(BundleRef("a", "1"))
    with pytest.raises(ModelNotReady, match="is loading"):
        _ = served.engine
    served.become_ready(bundle, EchoEngine())
    assert served.detail == "not verified: parity failed"


async def test_engine_failing_its_golden_inputs_is_a_failed_model(tmp_path: Path) -> None:
    write_bundle(tmp_path, "a")

    def fail(bundle: Bundle) -> EchoEngine:
        raise BadBundle(bundle.ref, detail="golden logits differ by 3")

    [served] = (await loaded(tmp_path, fail)).models()
    assert served.state is ModelState.FAILED
    assert served.detail == "bundle a@1: golden logits differ by 3"


async def test_close_ends_every_engine(tmp_path: Path) -> None:
    write_bundle(tmp_path, "a")
    registry = await loaded(tmp_path)
    await registry.close(1)
    assert registry.get("a").engine.is_closed


def test_service_of_two_tasks_serves_both_and_refuses_a_model_of_the_other(tmp_path: Path) -> None:
    write_bundle(tmp_path, "reader", task=TASK_EMBEDDING)
    write_bundle(tmp_path, "writer", task=TASK_TEXT_GENERATION)
    tasks = [TASK_EMBEDDING, TASK_TEXT_GENERATION]
    catalogue = choose_models(LocalStore(tmp_path), tasks, StoreConfig())
    registry: ModelRegistry[EchoEngine] = ModelRegistry(catalogue, tasks)
    assert [str(ref) for ref in catalogue.chosen] == ["reader@1", "writer@1"]
    with pytest.raises(WrongTask, match="expected a model for embedding, got one for text generation"):
        registry.get("writer", task=TASK_EMBEDDING)
