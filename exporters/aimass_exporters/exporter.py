"""One export from beginning to end: resolve, load, export, quantise, measure, describe, publish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aimass.model.v1 import manifest_pb2 as manifest
from transformers import PreTrainedModel

from aimass_exporters.bundles.draft import bundle_name, derived_name, draft_folder, publish
from aimass_exporters.bundles.manifest_writer import SCHEMA_VERSION, toolchain
from aimass_exporters.decoders.causal_lm import load_causal_lm
from aimass_exporters.decoders.decoder_bundle import build_decoder
from aimass_exporters.encoders.encoder_bundle import build_encoder
from aimass_exporters.encoders.head_bundle import build_head
from aimass_exporters.encoders.sentence_encoder import load_sentence_encoder
from aimass_exporters.encoders.task_encoder import HEADS, load_task_encoder
from aimass_exporters.errors import InvalidExportOption
from aimass_exporters.images.image_bundle import build_image_classifier
from aimass_exporters.images.image_model import load_image_model
from aimass_exporters.precision import Precision
from aimass_exporters.progress import Progress, SilentProgress
from aimass_exporters.seq2seq.text2text_bundle import build_text2text
from aimass_exporters.seq2seq.text2text_model import load_text2text
from aimass_exporters.sources.adapter_set import OPTION as ADAPTERS_OPTION
from aimass_exporters.sources.adapter_set import NamedAdapter, read_adapters
from aimass_exporters.sources.catalogue import TaskName
from aimass_exporters.sources.held_out import held_out_texts
from aimass_exporters.sources.lora_adapter import LoraAdapter, merge_adapter, read_adapter
from aimass_exporters.sources.source import Source, resolve_source
from aimass_exporters.speech.speech_bundle import build_speech
from aimass_exporters.speech.speech_model import load_speech_model
from aimass_exporters.speech.voice_activity import build_detector
from aimass_exporters.voices.voice_bundle import build_voice, load_voice

_ADAPTED = frozenset({TaskName.TEXT_GENERATION, TaskName.TEXT2TEXT_GENERATION})


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What to export, and how."""

    source: Source
    task: TaskName
    precision: Precision
    name: str
    eval_text: Path | None = None
    """Held-out text of the user's; None takes movie reviews."""
    adapter: LoraAdapter | None = None
    """Merged into the weights before anything else."""
    adapters: tuple[NamedAdapter, ...] = ()
    """Kept beside the weights, for requests to choose from."""


def export_model(
    source: str,
    *,
    task: str | None = None,
    precision: str = "fp32",
    store: Path,
    name: str | None = None,
    eval_text: Path | None = None,
    adapter: Path | None = None,
    adapters: Sequence[tuple[str, Path]] = (),
    progress: Progress | None = None,
) -> Path:
    """Export a model into the store; return the folder of its bundle, a new version of `name`.

    `adapter` is the folder of a LoRA adapter that is merged into the weights; `adapters` are names and
    folders of those that requests choose from. Raises an `ExportError`, and then has written nothing.
    """
    progress = progress or SilentProgress()
    resolved = resolve_source(source, progress)
    plan = ExportPlan(
        source=resolved,
        task=_task(task, resolved),
        precision=_precision(precision),
        name=bundle_name(name) if name else derived_name(resolved.suggested_name),
        eval_text=eval_text,
        adapter=None if adapter is None else read_adapter(adapter),
        adapters=read_adapters(adapters),
    )
    return run_export(plan, store, progress)


def _task(asked: str | None, source: Source) -> TaskName:
    if asked is None and source.task is None:
        raise InvalidExportOption(
            "--task", expected=_choices(TaskName), got="none, and the model's files do not tell"
        )
    try:
        return TaskName(asked) if asked is not None else TaskName(str(source.task))
    except ValueError as error:
        raise InvalidExportOption("--task", expected=_choices(TaskName), got=asked) from error


def _precision(asked: str) -> Precision:
    try:
        return Precision(asked)
    except ValueError as error:
        raise InvalidExportOption("--precision", expected=_choices(Precision), got=asked) from error


def _choices(kind: type[TaskName] | type[Precision]) -> str:
    return "one of " + ", ".join(kind)


def run_export(plan: ExportPlan, store: Path, progress: Progress) -> Path:
    """Export into a draft, and publish it when every measure is within its bound."""
    _refuse_adapters(plan)
    with draft_folder(store) as draft:
        described = _describe(plan)
        described.MergeFrom(_build(plan, draft, progress))
        progress.stage("publish")
        return publish(draft, described, store)


def _build(plan: ExportPlan, draft: Path, progress: Progress) -> manifest.ModelManifest:
    """Fill the draft; return the part of the manifest that depends on the model."""

    def held_out() -> list[str]:
        return held_out_texts(progress, file=plan.eval_text)

    progress.stage("load weights")
    if plan.task is TaskName.TEXT_GENERATION:
        lm = load_causal_lm(plan.source)
        _merge(plan, lm.model)
        built = build_decoder(
            lm,
            draft,
            precision=plan.precision,
            held_out=held_out,
            progress=progress,
            adapters=plan.adapters,
        )
        built.family = lm.model.config.model_type
        return built
    if plan.task is TaskName.SPEECH_RECOGNITION:
        speech = load_speech_model(plan.source)
        return build_speech(speech, draft, precision=plan.precision, progress=progress)
    if plan.task is TaskName.TEXT2TEXT_GENERATION:
        text2text = load_text2text(plan.source)
        _merge(plan, text2text.model)
        return build_text2text(text2text, draft, precision=plan.precision, progress=progress)
    if plan.task is TaskName.VOICE_ACTIVITY_DETECTION:
        return build_detector(plan.source.path, draft, precision=plan.precision, progress=progress)
    if plan.task is TaskName.SPEECH_SYNTHESIS:
        voice = load_voice(plan.source)
        return build_voice(voice, draft, precision=plan.precision, progress=progress)
    if plan.task is TaskName.IMAGE_CLASSIFICATION:
        image_model = load_image_model(plan.source)
        return build_image_classifier(image_model, draft, precision=plan.precision, progress=progress)
    if plan.task in HEADS:
        head = load_task_encoder(plan.source, plan.task)
        built = build_head(head, draft, precision=plan.precision, held_out=held_out, progress=progress)
        built.family = head.model.config.model_type
        return built
    encoder = load_sentence_encoder(plan.source)
    built = build_encoder(encoder, draft, precision=plan.precision, held_out=held_out, progress=progress)
    built.family = encoder.model.config.model_type
    return built


def _merge(plan: ExportPlan, model: PreTrainedModel) -> None:
    if plan.adapter is not None:
        merge_adapter(model, plan.adapter)


def _refuse_adapters(plan: ExportPlan) -> None:
    if plan.adapter is not None and plan.task not in _ADAPTED:
        expected = f"none for {plan.task}: adapters are merged for {' and '.join(sorted(_ADAPTED))}"
        raise InvalidExportOption("--adapter", expected=expected, got=plan.adapter.name)
    if plan.adapters and plan.task is not TaskName.TEXT_GENERATION:
        expected = f"none for {plan.task}: adapters are chosen by name for {TaskName.TEXT_GENERATION}"
        raise InvalidExportOption(ADAPTERS_OPTION, expected=expected, got=plan.adapters[0].name)
    if plan.adapters and plan.adapter is not None:
        expected = "none beside --adapter: they belong to the weights as they came"
        raise InvalidExportOption(ADAPTERS_OPTION, expected=expected, got=plan.adapters[0].name)


def _describe(plan: ExportPlan) -> manifest.ModelManifest:
    described = manifest.ModelManifest(
        schema_version=SCHEMA_VERSION,
        name=plan.name,
        task=manifest.Task.Value(f"TASK_{plan.task.name}"),
        precision=plan.precision.as_proto,
        licence=plan.source.licence,
        source=plan.source.origin,
        toolchain=toolchain(),
        adapter="" if plan.adapter is None else plan.adapter.name,
    )
    described.exported_at.GetCurrentTime()
    return described
