"""Padding and running: the graph gets what it asks for, padding changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from aimass_encoder.runner import HIDDEN, TYPE_IDS, EncoderRunner, pad_right
from aimass_encoder.testing import FakeEncoderGraph, fake_session
from aimass_serving.session import TensorInfo
from aimass_serving.testing import FakeSession
from numpy.typing import NDArray


def test_rows_are_padded_on_the_right() -> None:
    batch = pad_right([np.array([5, 6]), np.array([7])], length=3, pad_token_id=9)
    assert batch.token_ids.tolist() == [[5, 6, 9], [7, 9, 9]]
    assert batch.mask.tolist() == [[1, 1, 0], [1, 0, 0]]


def test_the_runner_feeds_type_ids_only_to_graphs_that_take_them() -> None:
    seen: list[set[str]] = []

    def graph(feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        seen.append(set(feeds))
        return {HIDDEN: np.zeros((*feeds["input_ids"].shape, 1), np.float32)}

    names = ["input_ids", "attention_mask", TYPE_IDS]
    with_types = FakeSession(graph, inputs=[TensorInfo(n, np.dtype(np.int64), ("b", "s")) for n in names])
    without = FakeSession(graph, inputs=[TensorInfo(n, np.dtype(np.int64), ("b", "s")) for n in names[:2]])
    for session in (with_types, without):
        runner = EncoderRunner(session, pad_token_id=0)
        runner.run(runner.pad([np.array([5])], length=2))
    assert seen == [set(names), set(names[:2])]


def test_warming_up_runs_every_piece_once() -> None:
    graph = FakeEncoderGraph()
    EncoderRunner(fake_session(graph), pad_token_id=0).warm_up([[(4, 1), (3, 1)], [(2, 16)]])
    assert graph.shapes == [(4, 1), (3, 1), (2, 16)]
