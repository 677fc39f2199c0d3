"""Counts the words that the exported graphs get wrong beside those that PyTorch gets wrong.

Agreement of tokens says how alike two readings are, not whether the words are right: an integer model may
ship only where its words are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from aimass_exporters.bundles.parity import ParityReport
from aimass_exporters.progress import Progress
from aimass_exporters.seq2seq.seq2seq_parity import MAX_TEXT_TOKENS, edit_distance, write_text
from aimass_exporters.sources.spoken_sentences import SpokenSentence
from aimass_exporters.speech.speech_parity import SpeechUnderTest, greedy, log_mel

_MAX_READABLE_RATE = 0.5
"""A model that gets more words wrong in PyTorch does not understand the voice: its errors say nothing."""


@dataclass(frozen=True, slots=True)
class ReadSentence:
    """What was said, and what was read."""

    said: str
    by_pytorch: str
    by_graphs: str


def measure_word_errors(read: Sequence[ReadSentence], max_increase: float, report: ParityReport) -> None:
    """Hold the rise of the word error rate above PyTorch's to its bound; both are shares of the words."""
    said = [plain_words(one.said) for one in read]
    num_words = sum(map(len, said))
    num_expected = _num_errors([one.by_pytorch for one in read], said)
    num_got = _num_errors([one.by_graphs for one in read], said)
    if num_expected > _MAX_READABLE_RATE * num_words:
        return
    increase = (num_got - num_expected) / num_words
    report.at_most("word_error_increase", increase, bound=max_increase, num_samples=num_words)


def _num_errors(texts: Sequence[str], said: Sequence[Sequence[str]]) -> int:
    return sum(edit_distance(plain_words(text), words) for text, words in zip(texts, said, strict=True))


def plain_words(text: str) -> list[str]:
    """Return the words of a text without case and punctuation."""
    return re.sub(r"[^\w\s]", "", text.lower()).split()


def read_sentences(
    test: SpeechUnderTest, sentences: Sequence[SpokenSentence], progress: Progress
) -> Iterator[ReadSentence]:
    """Yield what PyTorch and the graphs make of each sentence, greedily and without times."""
    progress.stage("count word errors")
    speech, runner = test.reference, test.runner(max_slots=1)
    decode, prompt = speech.text.tokenizer.decode, speech.prompt_ids
    for done, sentence in enumerate(sentences):
        progress.advance(done, len(sentences))
        (mel,) = log_mel(speech, [sentence.samples])
        with torch.inference_mode():
            encoded = speech.model.model.encoder(torch.from_numpy(mel)[None]).last_hidden_state
            expected = greedy(speech, encoded)[len(prompt) :]
        (memory,) = test.encoder.encode({"mel": mel[np.newaxis]})
        end = speech.spec.end_of_text_id
        got = write_text(runner, memory, prompt, MAX_TEXT_TOKENS, end_token_id=end)
        yield ReadSentence(sentence.words, decode(expected), decode(got))
