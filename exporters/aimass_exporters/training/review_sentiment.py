"""Whether a sentence of a film review praises: MiniLM with a text classifier, trained on a package's reviews.

Sentences are Rotten Tomatoes' (8,530, half of them positive). Rows that quantised models are judged on are
left out, and so are those that the classifier is calibrated and measured on.
"""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, BertForSequenceClassification

from aimass_exporters.errors import InvalidCheckpoint
from aimass_exporters.progress import Progress
from aimass_exporters.sources.held_out import REVIEWS_FILE, STRIDE
from aimass_exporters.sources.labelled import LabelledText, write_labelled
from aimass_exporters.training.fine_tuning import Example, Schedule, fine_tune, with_new_head

LABELS = ("negative", "positive")
NUM_TRAINING, NUM_HELD_OUT, MAX_TOKENS, _SEED = 4000, 1200, 96, 0
SCHEDULE = Schedule(num_fixed_layers=4, num_epochs=2, learning_rate=2e-4)


def train_sentiment(encoder: Path, data: Path, target: Path, progress: Progress) -> None:
    """Write a Hugging Face folder with the trained model and the sentences it has not seen.

    `encoder` is MiniLM's folder, `data` the unpacked package. Raises `InvalidCheckpoint`.
    """
    sentences = read_sentences(data / REVIEWS_FILE)
    held_out, training = sentences[:NUM_HELD_OUT], sentences[NUM_HELD_OUT:][:NUM_TRAINING]
    tokenizer = AutoTokenizer.from_pretrained(encoder, local_files_only=True)
    model = with_new_head(BertForSequenceClassification, encoder, LABELS, seed=_SEED)
    encoded = tokenizer([s.text for s in training], truncation=True, max_length=MAX_TOKENS)["input_ids"]
    examples = [Example(ids, [LABELS.index(s.label)]) for ids, s in zip(encoded, training, strict=True)]
    pooler: Any = model.bert.pooler
    progress.stage("train on reviews")
    fine_tune(
        model, lambda hidden: model.classifier(model.dropout(pooler(hidden))), examples, SCHEDULE, progress
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    write_labelled(target, held_out)


def read_sentences(file: Path) -> list[LabelledText]:
    """Return the sentences in an order that is always the same. Raises `InvalidCheckpoint`."""
    with file.open(newline="", encoding="utf-8") as stream:
        rows = [row for i, row in enumerate(csv.DictReader(stream)) if i % STRIDE]
    sentences = [
        LabelledText(row["text"], LABELS[int(row["label"])])
        for row in rows
        if row["source"] == "rotten_tomatoes"
    ]
    if len(sentences) < NUM_HELD_OUT + NUM_TRAINING:
        raise InvalidCheckpoint(file, detail=f"it has {len(sentences)} sentences, too few")
    random.Random(_SEED).shuffle(sentences)  # noqa: S311 - an order, not a secret
    return sentences
