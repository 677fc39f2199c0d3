"""A Whisper model in PyTorch, float32, with its tokenizer and the tokens it speaks with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aimass.model.v1.manifest_pb2 import AlignmentHead, SpeechRecognitionSpec
from tokenizers import Tokenizer
from transformers import PreTrainedModel, WhisperForConditionalGeneration

from aimass_exporters.bundles.text_tokenizer import TextTokenizer, read_tokenizer
from aimass_exporters.errors import InvalidCheckpoint, UnsupportedModel
from aimass_exporters.sources.catalogue import Reader
from aimass_exporters.sources.ct2_whisper import TOKENIZER_FILE, read_ct2_whisper
from aimass_exporters.sources.pretrained import load_pretrained
from aimass_exporters.sources.source import Source

SAMPLE_RATE_HZ, WINDOW_S, HOP_SAMPLES, FFT_SAMPLES = 16_000, 30, 160, 400
TIMESTAMP_STEP_MS = 20


@dataclass(frozen=True, slots=True)
class SpeechModel:
    """A model in evaluation mode, eager attention, float32: also the reference that parity is measured
    against.
    """

    model: PreTrainedModel
    text: TextTokenizer
    spec: SpeechRecognitionSpec

    @property
    def alignment_heads(self) -> list[tuple[int, int]]:
        """Layer and head of every cross-attention head that follows the audio."""
        return [(pair.layer, pair.head) for pair in self.spec.alignment_heads]

    @property
    def prompt_ids(self) -> list[int]:
        """Tokens before an English text without timestamps."""
        spec, ids = self.spec, [self.spec.start_of_transcript_id]
        if spec.is_multilingual:
            ids += [spec.language_ids["en"], spec.transcribe_id]
        return [*ids, spec.no_timestamps_id]


def load_speech_model(source: Source) -> SpeechModel:
    """Load a Whisper model of transformers or CTranslate2. Raises `InvalidCheckpoint`, `UnsupportedModel`."""
    if source.reader is Reader.CT2_WHISPER:
        model: Any = read_ct2_whisper(source.path)
        tokenizer = Tokenizer.from_file(str(source.path / TOKENIZER_FILE))
        text = TextTokenizer(_untruncated(tokenizer), int(model.config.pad_token_id))
    else:
        model, text = _load_folder(source.path), read_tokenizer(source.path)
    return SpeechModel(model, text, _spec(source.path, model, text.tokenizer))


def _untruncated(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _load_folder(folder: Path) -> PreTrainedModel:
    model = load_pretrained(WhisperForConditionalGeneration, folder, kind="Whisper")
    if model.config.model_type != "whisper":
        raise UnsupportedModel(model.config.model_type, because="speech is recognised by Whisper models")
    return model


def _spec(folder: Path, model: PreTrainedModel, tokenizer: Tokenizer) -> SpeechRecognitionSpec:
    config: Any = model.generation_config

    def token(*texts: str) -> int:
        for text in texts:
            if (number := tokenizer.token_to_id(text)) is not None:
                return int(number)
        raise InvalidCheckpoint(folder, detail=f"its tokenizer has no {texts[0]}")

    languages = {k.strip("<|>"): v for k, v in (getattr(config, "lang_to_id", None) or {}).items()}
    tasks = getattr(config, "task_to_id", None) or {}
    return SpeechRecognitionSpec(
        num_mel_bins=model.config.num_mel_bins,
        sample_rate_hz=SAMPLE_RATE_HZ,
        window_s=WINDOW_S,
        hop_samples=HOP_SAMPLES,
        fft_samples=FFT_SAMPLES,
        mel_columns_per_frame=2,
        start_of_transcript_id=token("<|startoftranscript|>"),
        end_of_text_id=token("<|endoftext|>"),
        start_of_previous_id=token("<|startofprev|>"),
        no_speech_id=token("<|nospeech|>", "<|nocaptions|>"),
        no_timestamps_id=token("<|notimestamps|>"),
        timestamp_begin_id=token("<|notimestamps|>") + 1,
        timestamp_step_ms=TIMESTAMP_STEP_MS,
        transcribe_id=tasks.get("transcribe"),
        translate_id=tasks.get("translate"),
        is_multilingual=bool(languages),
        language_ids=languages,
        suppress_ids=config.suppress_tokens or (),
        begin_suppress_ids=config.begin_suppress_tokens or (),
        alignment_heads=[
            AlignmentHead(layer=layer, head=head)
            for layer, head in getattr(config, "alignment_heads", None) or ()
        ],
    )
