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

from aimass_exporters.parity import ParityReport
from aimass_exporters.precision import SpeechBounds
from aimass_exporters.progress import Progress
from aimass_exporters.seq2seq_export import Seq2SeqGraphs
from aimass_exporters.speech_model import SAMPLE_RATE_HZ, SpeechModel

MAX_TEXT_TOKENS = 48
_CHUNK = 2
_GOLDEN_COLUMNS = 400

Logits = NDArray[np.float32]


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


@dataclass(frozen=True, slots=True)
class Clip:
    """What PyTorch makes of a recording."""

    mel: NDArray[np.float32]  # [mels, columns]
    memory: SourceMemory
    token_ids: list[int]
    """Prompt and text."""
    logits: Logits  # [len(token_ids), vocab]


def log_mel(speech: SpeechModel, samples: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the spectrograms [clips, mels, columns] of whole windows, by transformers' own extractor."""
    extractor = WhisperFeatureExtractor(feature_size=speech.spec.num_mel_bins)
    features = extractor(list(samples), sampling_rate=SAMPLE_RATE_HZ, return_tensors="np")
    columns = speech.model.config.max_source_positions * speech.spec.mel_columns_per_frame
    mel: NDArray[np.float32] = np.ascontiguousarray(features["input_features"][:, :, :columns], np.float32)
    return mel


def read_clip(speech: SpeechModel, mel: NDArray[np.float32]) -> Clip:
    """Let PyTorch encode, write greedily and score one spectrogram [mels, columns]."""
    with torch.inference_mode():
        encoded = speech.model.model.encoder(torch.from_numpy(mel)[None]).last_hidden_state
        token_ids = _greedy(speech, encoded)
        outputs = _encoder_output(encoded)
        ids = torch.tensor([token_ids])
        logits = speech.model(encoder_outputs=outputs, decoder_input_ids=ids, use_cache=False).logits[0]
        memory = _memory(speech.model, encoded)
    return Clip(mel, memory, token_ids, logits.float().numpy())


def _greedy(speech: SpeechModel, encoded: torch.Tensor) -> list[int]:
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
    bounds: SpeechBounds,
    report: ParityReport,
    progress: Progress,
) -> None:
    """Measure everything, and hold it to its bounds."""
    progress.stage("let PyTorch read the speech")
    clips = []
    for done, mel in enumerate(log_mel(test.reference, samples)):
        progress.advance(done, len(samples))
        clips.append(read_clip(test.reference, mel))
    progress.stage("compare with PyTorch")
    memories = [test.encoder.encode({"mel": clip.mel[None]})[0] for clip in clips]
    _measure_memories(clips, memories, bounds, report)
    _measure_logits(_walk(test, clips, memories), bounds, report)
    _measure_text(test, clips, memories, bounds, report)


def _measure_memories(
    clips: Sequence[Clip], memories: Sequence[SourceMemory], bounds: SpeechBounds, report: ParityReport
) -> None:
    pairs = [
        (got, want)
        for clip, memory in zip(clips, memories, strict=True)
        for got, want in zip(memory.arrays, clip.memory.arrays, strict=True)
    ]
    error = sum(float(np.square(got - want).sum()) for got, want in pairs)
    size = sum(float(np.square(want).sum()) for _, want in pairs)
    relative = (error / size) ** 0.5
    report.at_most(
        "relative_error_encoder", relative, bound=bounds.max_relative_error_encoder, num_samples=len(clips)
    )


def _walk(
    test: SpeechUnderTest, clips: Sequence[Clip], memories: Sequence[SourceMemory]
) -> list[tuple[Logits, Logits]]:
    """Feed PyTorch's texts as the engine would; return pairs of logits [vocab]: got, expected."""
    runner, pairs = test.runner(max_slots=len(clips)), []
    lengths = np.zeros(len(clips), np.int64)
    for slot, (clip, memory) in enumerate(zip(clips, memories, strict=True)):
        runner.set_memory(slot, memory)
        end = len(test.reference.prompt_ids) + slot % 2  # so that rows differ in length
        for start in range(0, end, _CHUNK):
            chunk = np.array(clip.token_ids[start : min(start + _CHUNK, end)])
            got = runner.prefill(slot, chunk, start=start)
            pairs.append((got.copy(), clip.logits[start + len(chunk) - 1]))
        lengths[slot] = end
    for _ in range(max(len(clip.token_ids) for clip in clips)):
        places = np.minimum(lengths, [len(clip.token_ids) - 1 for clip in clips])  # ended rows repeat
        tokens = np.array([clip.token_ids[n] for clip, n in zip(clips, places, strict=True)])
        got = runner.decode(tokens, places).copy()
        pairs += [(got[row], clips[row].logits[n]) for row, n in enumerate(places) if n == lengths[row]]
        lengths = places + 1
    return pairs


def _measure_logits(
    pairs: Sequence[tuple[Logits, Logits]], bounds: SpeechBounds, report: ParityReport
) -> None:
    largest = max(float(np.abs(got - want).max()) for got, want in pairs)
    agreement = float(np.mean([got.argmax() == want.argmax() for got, want in pairs]))
    divergence = float(np.mean([_kl(want, got) for got, want in pairs]))
    if bounds.max_abs_diff_logits is not None:
        report.at_most(
            "max_abs_diff_logits", largest, bound=bounds.max_abs_diff_logits, num_samples=len(pairs)
        )
    report.at_least("top1_agreement", agreement, bound=bounds.min_top1_agreement, num_samples=len(pairs))
    report.at_most("kl_divergence_mean", divergence, bound=bounds.max_kl_divergence, num_samples=len(pairs))


def _kl(reference: Logits, got: Logits) -> float:
    """Return the Kullback-Leibler divergence, in nats, of what `got` predicts from what the reference
    does.
    """
    p, q = (_log_softmax(logits) for logits in (reference, got))
    return float((np.exp(p) * (p - q)).sum())


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max()
    scores: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return scores


def _measure_text(
    test: SpeechUnderTest,
    clips: Sequence[Clip],
    memories: Sequence[SourceMemory],
    bounds: SpeechBounds,
    report: ParityReport,
) -> None:
    """Compare what each writes by itself, token by token, greedily."""
    runner, prompt = test.runner(max_slots=1), test.reference.prompt_ids
    num_errors, num_tokens = 0, 0
    for clip, memory in zip(clips, memories, strict=True):
        expected = clip.token_ids[len(prompt) :]
        got = _write(runner, memory, prompt, len(expected))
        num_errors += edit_distance(got, expected)
        num_tokens += len(expected)
    report.at_most(
        "token_error_rate", num_errors / num_tokens, bound=bounds.max_token_error_rate, num_samples=num_tokens
    )


def _write(runner: DecoderRunner, memory: SourceMemory, prompt: Sequence[int], count: int) -> list[int]:
    runner.set_memory(0, memory)
    written = [int(runner.prefill(0, np.array(prompt), start=0).argmax())]
    while len(written) < count:
        length = np.array([len(prompt) + len(written) - 1])
        written.append(int(runner.decode(np.array(written[-1:]), length)[0].argmax()))
    return written


def edit_distance(got: Sequence[int], expected: Sequence[int]) -> int:
    """Return how many tokens must be inserted, deleted or replaced (Levenshtein)."""
    row = list(range(len(expected) + 1))
    for number, token in enumerate(got, 1):
        before, row[0] = row[0], number
        for place, wanted in enumerate(expected, 1):
            change = before + (token != wanted)
            before, row[place] = row[place], min(change, row[place] + 1, row[place - 1] + 1)
    return row[-1]


def golden_arrays(test: SpeechUnderTest, bounds: SpeechBounds) -> dict[str, NDArray[np.generic]]:
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
