"""Voices that are refused before anything is written, and graphs that are not cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from aimass_exporters.errors import InvalidCheckpoint, InvalidExportOption, UnsupportedModel
from aimass_exporters.precision import Precision
from aimass_exporters.progress import SilentProgress
from aimass_exporters.sources.catalogue import TaskName
from aimass_exporters.sources.source import resolve_source
from aimass_exporters.voices.english_symbols import ipa_to_misaki, misaki_to_espeak
from aimass_exporters.voices.piper_graphs import PiperGraph
from aimass_exporters.voices.voice_bundle import build_voice, load_voice
from onnx import TensorProto, helper


def piper_folder(folder: Path, **changed: Any) -> Path:
    """A folder that looks like a Piper voice, with a graph that is none."""
    config = {"espeak": {"voice": "en-us"}, "num_speakers": 1} | changed
    (folder / "voice.onnx.json").write_text(json.dumps(config))
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [value])
    graph.output[0].name = "y"
    onnx.save(helper.make_model(graph), folder / "voice.onnx")
    return folder


def test_a_piper_folder_is_known_by_its_files(tmp_path: Path) -> None:
    source = resolve_source(str(piper_folder(tmp_path)), SilentProgress())
    assert source.task is TaskName.SPEECH_SYNTHESIS


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"espeak": {"voice": "de"}}, "only en-us can be read without espeak, and this voice speaks de"),
        ({"num_speakers": 12}, "several speakers"),
    ],
)
def test_a_voice_that_cannot_be_served_is_refused(
    tmp_path: Path, changed: dict[str, Any], problem: str
) -> None:
    source = resolve_source(str(piper_folder(tmp_path, **changed)), SilentProgress())
    with pytest.raises(UnsupportedModel, match=problem):
        load_voice(source)


def test_missing_files_are_named(tmp_path: Path) -> None:
    folder = piper_folder(tmp_path)
    (folder / "voice.onnx").unlink()
    with pytest.raises(InvalidCheckpoint, match=r"expected voice\.onnx beside its configuration"):
        load_voice(resolve_source(str(folder), SilentProgress()))


def test_a_graph_of_another_shape_is_not_cut(tmp_path: Path) -> None:
    graph = PiperGraph(onnx.load(piper_folder(tmp_path) / "voice.onnx"))
    with pytest.raises(UnsupportedModel, match="expected"):
        graph.cuts()


def test_voices_stay_as_they_come(tmp_path: Path) -> None:
    voice = load_voice(resolve_source("hibari-heart", SilentProgress()))
    with pytest.raises(InvalidExportOption, match="--precision: expected fp32"):
        build_voice(voice, tmp_path, precision=Precision.INT4, progress=SilentProgress())
    assert list(tmp_path.iterdir()) == []


def test_symbols_of_one_alphabet_are_rewritten_in_the_other() -> None:
    def rewritten(text: str, rules: list[Any]) -> str:
        for rule in rules:
            text = text.replace(rule.to_replace, rule.replacement)
        return text

    assert rewritten("w\u025c\u0279ld A", misaki_to_espeak()) == "w\u025c\u02d0ld e\u026a"
    assert rewritten("t\u0283e\u026a\u02d0g", ipa_to_misaki()) == "\u02a7A\u0261"
