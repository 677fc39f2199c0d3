"""Measures an exported Whisper model against PyTorch on the same weights, through the runner that will
serve it.

On recorded speech: keys and values of the encoder, logits along PyTorch's own text (prompt in two chunks,
then ragged batched decoding), and the text that each writes by itself. On random weights the last says
little, the others all.
"""

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
from transformers import WhisperFeatureExtractor
from transformers.modeling_outputs import BaseModelOutput

from aimass_exporters.bundles.parity import ParityReport
from aimass_exporters.precision import Seq2SeqBounds
from aimass_exporters.progress import Progress
from aimass_exporters.seq2seq.seq2seq_export import Seq2SeqGraphs
from aimass_exporters.seq2seq.seq2seq_parity import (
    MAX_TEXT_TOKENS,
    Reading,
    measure_logits,
    measure_memories,
    measure_text,
    walk,
)
from aimass_exporters.speech.speech_model import SAMPLE_RATE_HZ, SpeechModel

_GOLDEN_COLUMNS = 400


@dataclass(frozen=True, slots=True)
class SpeechUnderTest:
    """Exported graphs beside the PyTorch model they came from."""

    encoder: SourceEncoder
    decoder: Session
    spec: DecoderSpec
    reference: SpeechModel

    @classmethod
    def open(cls, graphs: Seq2SeqGraphs, spec: DecoderSpec, reference: SpeechModel) -> SpeechUnderTest:
        """Open the graphs on the CPU, where PyTorch runs too."""
        config = SessionConfig(device=Device.CPU, allow_spinning=False)
        cross = geometry_of(spec).cross
        assert cross is not None, "a speech decoder has a source"
        encoder = SourceEncoder(open_session(graphs.encoder, config), cross)
        return cls(encoder, open_session(graphs.decoder, config), spec, reference)

    def runner(self, *, max_slots: int) -> DecoderRunner:
        """Return a runner with empty slots."""
        max_len = min(len(self.reference.prompt_ids) + MAX_TEXT_TOKENS, self.spec.max_positions)
        return DecoderRunner(self.decoder, geometry_of(self.spec), max_slots=max_slots, max_len=max_len)


def log_mel(speech: SpeechModel, samples: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the spectrograms [clips, mels, columns] of whole windows, by transformers' own extractor."""
    extractor = WhisperFeatureExtractor(feature_size=speech.spec.num_mel_bins)
    features = extractor(list(samples), sampling_rate=SAMPLE_RATE_HZ, return_tensors="np")
    columns = speech.model.config.max_source_positions * speech.spec.mel_columns_per_frame
    mel: NDArray[np.float32] = np.ascontiguousarray(features["input_features"][:, :, :columns], np.float32)
    return mel


def read_clip(speech: SpeechModel, mel: NDArray[np.float32]) -> Reading:
    """Let PyTorch encode, write greedily and score one spectrogram [mels, columns]."""
    with torch.inference_mode():
        encoded = speech.model.model.encoder(torch.from_numpy(mel)[None]).last_hidden_state
        token_ids = greedy(speech, encoded)
        outputs = _encoder_output(encoded)
        ids = torch.tensor([token_ids])
        logits = speech.model(encoder_outputs=outputs, decoder_input_ids=ids, use_cache=False).logits[0]
        memory = _memory(speech.model, encoded)
    return Reading(memory, token_ids, len(speech.prompt_ids), logits.float().numpy())


def greedy(speech: SpeechModel, encoded: torch.Tensor) -> list[int]:
    """Return the prompt and what PyTorch writes after it, the token that ends it included."""
    ids, cache = list(speech.prompt_ids), None
    step = ids
    limit = min(len(ids) + MAX_TEXT_TOKENS, speech.model.config.max_target_positions)
    outputs = _encoder_output(encoded)
    while len(ids) < limit:
        result = speech.model(
            encoder_outputs=outputs,
            decoder_input_ids=torch.tensor([step]),
            past_key_values=cache,
            use_cache=True,
        )
        cache, step = result.past_key_values, [int(result.logits[0, -1].argmax())]
        ids += step
        if step[0] == speech.spec.end_of_text_id:
            break
    return ids


def _encoder_output(encoded: Any) -> BaseModelOutput:
    return BaseModelOutput(last_hidden_state=encoded)


def _memory(model: Any, encoded: torch.Tensor) -> SourceMemory:
    """Return PyTorch's keys and values of a source, as the encoder graph gives them."""
    arrays = []
    for layer in model.model.decoder.layers:
        attention = layer.encoder_attn
        for projection in (attention.k_proj, attention.v_proj):
            heads = projection(encoded)[0].unflatten(-1, (attention.num_heads, attention.head_dim))
            arrays.append(heads.transpose(0, 1).numpy())
    return SourceMemory(tuple(arrays))


def measure_speech(
    test: SpeechUnderTest,
    samples: Sequence[NDArray[np.float32]],
    bounds: Seq2SeqBounds,
    report: ParityReport,
    progress: Progress,
) -> None:
    """Measure everything, and hold it to its bounds."""
    progress.stage("let PyTorch read the speech")
    readings, spectrograms = [], log_mel(test.reference, samples)
    for done, mel in enumerate(spectrograms):
        progress.advance(done, len(samples))
        readings.append(read_clip(test.reference, mel))
    progress.stage("compare with PyTorch")
    memories = [test.encoder.encode({"mel": mel[np.newaxis]})[0] for mel in spectrograms]
    measure_memories(readings, memories, bounds, report)
    measure_logits(walk(test.runner(max_slots=len(readings)), readings, memories), bounds, report)
    measure_text(test.runner(max_slots=1), readings, memories, bounds, report)


def golden_arrays(test: SpeechUnderTest, bounds: Seq2SeqBounds) -> dict[str, NDArray[np.generic]]:
    """Return a short source and a prompt, and what the graphs make of them here: what a service replays."""
    generator = np.random.default_rng(0)
    columns = min(_GOLDEN_COLUMNS, 2 * test.reference.model.config.max_source_positions)
    mel = generator.uniform(-1, 1, (1, test.reference.spec.num_mel_bins, columns)).astype(np.float32)
    runner, ids = test.runner(max_slots=1), np.array(test.reference.prompt_ids, np.int64)
    runner.set_memory(0, test.encoder.encode({"mel": mel})[0])
    logits = runner.prefill(0, ids, start=0).copy()
    tolerance = max(bounds.golden_tolerance_std * float(logits.std()), 1e-4)
    return {
        "encoder.mel": mel,
        "prompt_ids": ids,
        "logits": logits,
        "tolerance": np.array(tolerance, np.float64),
    }
