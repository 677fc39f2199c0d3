"""Pairs and multi-label classifiers as they are served against the pipelines of transformers, random weights.

1e-4 leaves room for fp32 sums in another order; scores of a wrong pair, type id or activation differ by more.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aimass_encoder.classification import ClassifiedText, ClassifyOptions, ClassifyRequest
from aimass_encoder.loader import load_engine
from aimass_encoder.text_classifier import TextClassifier
from aimass_exporters.errors import InvalidCheckpoint
from aimass_serving.compute import ComputePermit
from aimass_serving.service import LoadContext
from aimass_serving.session import Device, SessionConfig
from aimass_serving.store import open_store

TEXTS = ["a small model reads the words", "lamp", "numbers such as 1928 are words to it as well " * 3]
PAIRS = [("the river ran past the mill", "under the stone bridge"), ("lamp", "evening " * 40)]


def checkpoint(folder: Path, problem_type: str) -> Path:
    import torch
    from aimass_exporters.testing import TINY_VOCAB, tiny_tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=TINY_VOCAB,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        initializer_range=0.2,
        problem_type=problem_type,
        id2label={0: "bad", 1: "fair", 2: "good"},
        label2id={"bad": 0, "fair": 1, "good": 2},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>",
        pair="<|im_start|> $A <|im_end|> $B:1 <|im_end|>:1",
        special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)],
    )
    tokenizer.model_max_length = 64
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    return folder


def served(store: Path, inputs: list[Any]) -> list[dict[str, float]]:
    (ref,) = open_store(str(store)).list()
    context = LoadContext(SessionConfig(device=Device.CPU), ComputePermit())
    engine = load_engine(open_store(str(store)).open(ref), context)
    assert isinstance(engine, TextClassifier)
    try:
        options = ClassifyOptions(top_k=3, threshold=0.0)
        reply = asyncio.run(engine.classify(ClassifyRequest(inputs, options)))
    finally:
        engine.close()
    assert all(isinstance(r, ClassifiedText) for r in reply.results), reply.results
    return [
        {label.label: label.score for label in result.labels}
        for result in reply.results
        if isinstance(result, ClassifiedText)
    ]


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
def test_texts_and_pairs_have_the_scores_of_a_transformers_pipeline(
    tmp_path: Path, problem_type: str
) -> None:
    from aimass_exporters.exporter import export_model
    from transformers import pipeline

    folder = checkpoint(tmp_path / "checkpoint", problem_type)
    export_model(str(folder), store=tmp_path / "store", name="tiny-classifier")
    oracle: Any = pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
    options = {"truncation": True, "max_length": 64}
    expected = oracle(TEXTS, **options)
    expected += [oracle({"text": a, "text_pair": b}, **options) for a, b in PAIRS]
    for ours, theirs in zip(served(tmp_path / "store", [*TEXTS, *PAIRS]), expected, strict=True):
        assert ours == pytest.approx({item["label"]: item["score"] for item in theirs}, abs=1e-4)


def test_a_checkpoint_without_the_head_is_refused(tmp_path: Path) -> None:
    from aimass_exporters.exporter import export_model

    folder = checkpoint(tmp_path / "checkpoint", "single_label_classification")
    with pytest.raises(InvalidCheckpoint, match="weights of the task's head are missing"):
        export_model(str(folder), task="question-answering", store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_pickle_that_names_other_code_is_not_loaded(tmp_path: Path) -> None:
    import joblib
    from aimass_exporters.sources.intent_head import read_record

    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    joblib.dump(Trap(), tmp_path / "trap.joblib")
    with pytest.raises(InvalidCheckpoint, match="it was not loaded"):
        read_record(tmp_path / "trap.joblib")
    assert not (tmp_path / "sprung").exists()
