"""Measures an exported encoder-decoder of text against PyTorch on the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from aimass.model.v1.manifest_pb2 import DecoderSpec
from aimass_decoding.cross_attention import SourceEncoder, SourceMemory
from aimass_decoding.runner import DecoderRunner, geometry_of
from aimass_serving.session import Device, Session, SessionConfig, open_session
from numpy.typing import NDArray

from aimass_exporters.bundles.parity import ParityReport
from aimass_exporters.decoders.decoder_parity import PASSAGES
from aimass_exporters.graphs.slot_layers import split_heads
from aimass_exporters.precision import Seq2SeqBounds
from aimass_exporters.progress import Progress
from aimass_exporters.seq2seq.seq2seq_export import Seq2SeqGraphs
from aimass_exporters.seq2seq.seq2seq_families import seq2seq_parts
from aimass_exporters.seq2seq.seq2seq_parity import (
    MAX_TEXT_TOKENS,
    Reading,
    measure_logits,
    measure_memories,
    measure_text,
    walk,
)
from aimass_exporters.seq2seq.text2text_model import Text2TextModel

_MAX_SOURCE_TOKENS = 40


@dataclass(frozen=True, slots=True)
class Text2TextUnderTest:
    """Exported graphs beside the PyTorch model they came from."""

    encoder: SourceEncoder
    decoder: Session
    spec: DecoderSpec
    reference: Text2TextModel

    @classmethod
    def open(cls, graphs: Seq2SeqGraphs, spec: DecoderSpec, reference: Text2TextModel) -> Text2TextUnderTest:
        """Open the graphs on the CPU, where PyTorch runs too."""
        config = SessionConfig(device=Device.CPU, allow_spinning=False)
        cross = geometry_of(spec).cross
        assert cross is not None, "an encoder-decoder has a source"
        encoder = SourceEncoder(open_session(graphs.encoder, config), cross)
        return cls(encoder, open_session(graphs.decoder, config), spec, reference)

    def runner(self, *, max_slots: int) -> DecoderRunner:
        """Return a runner with empty slots."""
        wanted = len(self.reference.spec.decoder_start_ids) + MAX_TEXT_TOKENS
        max_len = min(wanted, self.spec.max_positions)
        return DecoderRunner(self.decoder, geometry_of(self.spec), max_slots=max_slots, max_len=max_len)


def measure_text2text(
    test: Text2TextUnderTest, bounds: Seq2SeqBounds, report: ParityReport, progress: Progress
) -> None:
    """Measure on passages of different lengths, encoded as one batch, and hold all to their bounds."""
    progress.stage("compare with PyTorch")
    sources = [_source(test.reference, text) for text in PASSAGES]
    readings = [read_source(test.reference, ids) for ids in sources]
    memories = encode_batch(test.encoder, sources)
    measure_memories(readings, memories, bounds, report)
    measure_logits(walk(test.runner(max_slots=len(readings)), readings, memories), bounds, report)
    measure_text(test.runner(max_slots=1), readings, memories, bounds, report)


def _source(reference: Text2TextModel, text: str) -> list[int]:
    """Return a passage's tokens, cut to a length of its own."""
    limit = min(_MAX_SOURCE_TOKENS - len(text) % 7, reference.spec.max_source_tokens)
    ids = reference.text.encode(text)
    return [*ids[: limit - 1], ids[-1]] if len(ids) > limit else ids


def encode_batch(encoder: SourceEncoder, sources: Sequence[Sequence[int]]) -> list[SourceMemory]:
    """Encode sources of different lengths together, filled up on the right."""
    lengths = [len(ids) for ids in sources]
    input_ids = np.zeros((len(sources), max(lengths)), np.int64)
    mask = np.zeros_like(input_ids)
    for row, ids in enumerate(sources):
        input_ids[row, : len(ids)], mask[row, : len(ids)] = ids, 1
    return encoder.encode({"input_ids": input_ids, "attention_mask": mask}, lengths=lengths)


def read_source(reference: Text2TextModel, source: Sequence[int]) -> Reading:
    """Let PyTorch encode, write greedily and score one source."""
    model: Any = reference.model
    prompt = list(reference.spec.decoder_start_ids)
    with torch.inference_mode():
        encoded = model.get_encoder()(input_ids=torch.tensor([source]))
        token_ids = _greedy(model, encoded, prompt, frozenset(reference.eos_token_ids))
        ids = torch.tensor([token_ids])
        logits = model(encoder_outputs=encoded, decoder_input_ids=ids, use_cache=False).logits[0]
        memory = _memory(model, encoded.last_hidden_state)
    return Reading(memory, token_ids, len(prompt), logits.float().numpy())


def _greedy(model: Any, encoded: Any, prompt: list[int], eos: frozenset[int]) -> list[int]:
    ids, step, cache = list(prompt), list(prompt), None
    while len(ids) < len(prompt) + MAX_TEXT_TOKENS:
        step_ids = torch.tensor([step])
        output = model(
            encoder_outputs=encoded, decoder_input_ids=step_ids, past_key_values=cache, use_cache=True
        )
        cache, step = output.past_key_values, [int(output.logits[0, -1].argmax())]
        ids += step
        if step[0] in eos:
            break
    return ids


def _memory(model: Any, hidden: torch.Tensor) -> SourceMemory:
    """Return PyTorch's keys and values of a source, as the encoder graph gives them."""
    parts = seq2seq_parts(model)
    linears = [linear for cross in parts.cross for linear in (cross.key, cross.value)]
    return SourceMemory(tuple(split_heads(linear(hidden), parts.heads)[0].numpy() for linear in linears))


def golden_arrays(test: Text2TextUnderTest, bounds: Seq2SeqBounds) -> dict[str, NDArray[np.generic]]:
    """Return a source and a prompt, and what the graphs make of them here: what a service replays."""
    source = np.array([_source(test.reference, PASSAGES[0])], np.int64)
    feeds = {"input_ids": source, "attention_mask": np.ones_like(source)}
    ids = np.array([*test.reference.spec.decoder_start_ids, int(source[0, 0])], np.int64)
    runner = test.runner(max_slots=1)
    runner.set_memory(0, test.encoder.encode(feeds)[0])
    logits = runner.prefill(0, ids, start=0).copy()
    shown = logits[logits > -1e8]  # what is never chosen says nothing of the others' spread
    tolerance = max(bounds.golden_tolerance_std * float(shown.std()), 1e-4)
    return {
        **{f"encoder.{name}": array for name, array in feeds.items()},
        "prompt_ids": ids,
        "logits": logits,
        "tolerance": np.array(tolerance, np.float64),
    }
