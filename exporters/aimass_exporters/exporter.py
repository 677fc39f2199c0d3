"""One export from beginning to end: resolve, load, export, quantise, measure, describe, publish."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from aimass.model.v1 import manifest_pb2 as manifest

from aimass_exporters.catalogue import TaskName
from aimass_exporters.causal_lm import CausalLM, load_causal_lm
from aimass_exporters.decoder_export import decoder_shape, export_decoder
from aimass_exporters.decoder_parity import DecoderUnderTest, golden_arrays, measure_held_out, measure_logits
from aimass_exporters.draft import bundle_name, derived_name, draft_folder, publish
from aimass_exporters.errors import InvalidExportOption
from aimass_exporters.held_out import held_out_texts
from aimass_exporters.manifest_writer import SCHEMA_VERSION, describe_graph, toolchain
from aimass_exporters.parity import ParityReport
from aimass_exporters.precision import DECODER_BOUNDS, Precision
from aimass_exporters.progress import Progress, SilentProgress
from aimass_exporters.source import Source, resolve_source
from aimass_exporters.text_tokenizer import TextTokenizer

TOKENIZER_FILE, CHAT_TEMPLATE_FILE, GOLDEN_FILE = "tokenizer.json", "chat_template.jinja", "golden.npz"


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What to export, and how."""

    source: Source
    task: TaskName
    precision: Precision
    name: str
    eval_text: Path | None = None
    """Held-out text of the user's; None takes movie reviews."""


def export_model(
    source: str,
    *,
    task: str | None = None,
    precision: str = "fp32",
    store: Path,
    name: str | None = None,
    eval_text: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Export a model into the store; return the folder of its bundle, a new version of `name`.

    Raises an `ExportError`, and then has written nothing.
    """
    progress = progress or SilentProgress()
    resolved = resolve_source(source, progress)
    plan = ExportPlan(
        source=resolved,
        task=_task(task, resolved),
        precision=_precision(precision),
        name=bundle_name(name) if name else derived_name(resolved.suggested_name),
        eval_text=eval_text,
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
    with draft_folder(store) as draft:
        if plan.task is TaskName.TEXT_GENERATION:
            described = _export_decoder(plan, draft, progress)
        else:
            raise NotImplementedError
        progress.stage("publish")
        return publish(draft, described, store)


def _export_decoder(plan: ExportPlan, draft: Path, progress: Progress) -> manifest.ModelManifest:
    progress.stage("load weights")
    lm = load_causal_lm(plan.source)
    progress.stage("trace the model into a graph")
    graph = export_decoder(lm.model, draft)
    described = _describe(plan, lm.model.config.model_type)
    described.decoder.CopyFrom(_decoder_spec(lm))
    described.graphs.append(describe_graph("decoder", graph))
    described.tokenizer.CopyFrom(write_tokenizer(lm.text, draft))
    test = DecoderUnderTest.open(graph, described.decoder, lm)
    described.parity.CopyFrom(_decoder_parity(plan, test, progress))
    np.savez(draft / GOLDEN_FILE, **golden_arrays(test, DECODER_BOUNDS[plan.precision]))
    return described


def _decoder_spec(lm: CausalLM) -> manifest.DecoderSpec:
    shape = decoder_shape(lm.model.config)
    return manifest.DecoderSpec(
        num_layers=shape.num_layers,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        max_positions=shape.max_positions,
        kv_dtype="float",
        eos_token_ids=lm.eos_token_ids,
        defaults=lm.generation_defaults(shape.max_positions),
    )


def _decoder_parity(plan: ExportPlan, test: DecoderUnderTest, progress: Progress) -> manifest.ParityRecord:
    bounds, report = DECODER_BOUNDS[plan.precision], ParityReport()
    measure_logits(test, bounds, report, progress)
    if plan.precision is not Precision.FP32:
        texts = held_out_texts(progress, file=plan.eval_text)
        measure_held_out(test, texts, bounds, report, progress)
    return report.record()


def _describe(plan: ExportPlan, family: str) -> manifest.ModelManifest:
    described = manifest.ModelManifest(
        schema_version=SCHEMA_VERSION,
        name=plan.name,
        task=manifest.Task.Value(f"TASK_{plan.task.name}"),
        family=family,
        precision=plan.precision.as_proto,
        licence=plan.source.licence,
        source=plan.source.origin,
        toolchain=toolchain(),
    )
    described.exported_at.GetCurrentTime()
    return described


def write_tokenizer(text: TextTokenizer, draft: Path) -> manifest.TokenizerSpec:
    """Write the tokenizer and its chat template; return what the manifest says of them."""
    text.tokenizer.save(str(draft / TOKENIZER_FILE))
    spec = manifest.TokenizerSpec(
        file=TOKENIZER_FILE, pad_token_id=text.pad_token_id, special_tokens=dict(text.special_tokens)
    )
    if text.chat_template:
        (draft / CHAT_TEMPLATE_FILE).write_text(text.chat_template, encoding="utf-8")
        spec.chat_template_file = CHAT_TEMPLATE_FILE
    return spec
