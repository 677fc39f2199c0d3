"""Entities, masked words, answers, next sentences and own labels against transformers' pipelines.

Same weights: random ones but for the masked language model. 1e-4 leaves room for fp32 sums in another order;
scores of a wrong token, window or label differ by more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aimass_encoder.answering import AnsweredQuestion, AnswerOptions, AnswerRequest
from aimass_encoder.classification import ClassifiedText
from aimass_encoder.entities import Aggregation
from aimass_encoder.loader import load_engine
from aimass_encoder.mask_filler import MaskFiller
from aimass_encoder.masks import FilledText, FillOptions, FillRequest
from aimass_encoder.next_sentence import NextSentence, NextSentencePredictor, NextSentenceRequest
from aimass_encoder.question_answerer import QuestionAnswerer
from aimass_encoder.tagging import TaggedText, TagOptions, TagRequest
from aimass_encoder.task_engine import TaskEngine
from aimass_encoder.text_classifier import TextClassifier
from aimass_encoder.token_tagger import TokenTagger
from aimass_encoder.zero_shot import ZeroShotOptions, ZeroShotRequest
from aimass_encoder.zero_shot_classifier import classify_zero_shot
from aimass_exporters.sources.catalogue import TaskName
from aimass_serving.compute import ComputePermit
from aimass_serving.service import LoadContext
from aimass_serving.session import Device, SessionConfig
from aimass_serving.store import open_store

# transformers scripts some functions when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
Engine = TypeVar("Engine", bound=TaskEngine)

TEXTS = [
    "Anna Meier of the Elbe Company moved to New York City in 1928.",
    "supercalifragilistic Hamburgers",
    "She said: 'no, thanks!' and left for São Paulo.",
]
CONTEXT = (
    "The old mill stood by the river until 1871, when a flood took it. Robert Hansen, a baker from the next "
    "village, built a new one of stone on the hill. It ground corn for ninety years. Today a small museum "
    "shows its wheels, and children may turn them by hand on the first Sunday of every month in summer. "
)


@contextmanager
def engine_of(store: Path, kind: type[Engine]) -> Iterator[Engine]:
    (ref,) = open_store(str(store)).list()
    context = LoadContext(SessionConfig(device=Device.CPU), ComputePermit())
    engine = load_engine(open_store(str(store)).open(ref), context)
    try:
        assert isinstance(engine, kind)
        yield engine
    finally:
        engine.close()


@pytest.fixture
def exported(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Return a function that gives a tiny model's folder and the store with its export."""
    from aimass_exporters.testing import cached_export
    from aimass_exporters.tiny_encoders import write_tiny_bert

    def export(task: TaskName, **options: Any) -> tuple[Path, Path]:
        folder = write_tiny_bert(tmp_path / task.value, task, **options)
        return folder, cached_export(folder, name=f"tiny-{task.value}", task=task.value)

    return export


def pipeline_of(task: str, folder: Path, **options: Any) -> Any:
    import torch
    import transformers

    torch.set_num_threads(1)
    pipeline: Any = transformers.pipeline  # overloaded by the literal name of each task
    return pipeline(task, model=str(folder), device="cpu", **options)


def test_entities_are_those_of_a_transformers_pipeline(exported: Callable[..., tuple[Path, Path]]) -> None:
    labels = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    folder, store = exported(TaskName.TOKEN_CLASSIFICATION, labels=labels)
    oracle = pipeline_of("token-classification", folder)
    with engine_of(store, TokenTagger) as engine:
        for aggregation in Aggregation:
            request = TagRequest(TEXTS, TagOptions(aggregation=aggregation))
            results = asyncio.run(engine.tag(request)).results
            expected = oracle(TEXTS, aggregation_strategy=aggregation.value)
            for ours, theirs in zip(results, expected, strict=True):
                assert isinstance(ours, TaggedText)
                key = "entity" if aggregation is Aggregation.NONE else "entity_group"
                assert [(e.label, e.start, e.end) for e in ours.entities] == [
                    (e[key], e["start"], e["end"]) for e in theirs
                ], aggregation
                assert [e.score for e in ours.entities] == pytest.approx(
                    [float(e["score"]) for e in theirs], abs=1e-4
                )


def test_long_texts_have_the_entities_of_the_windows_where_they_are_most_central(
    exported: Callable[..., tuple[Path, Path]],
) -> None:
    """The oracle reads each window by itself in PyTorch; a token counts where it is farthest from an edge."""
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    folder, store = exported(TaskName.TOKEN_CLASSIFICATION, labels=["X", "Y", "Z"])
    text = CONTEXT * 3
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    encoded = tokenizer(
        text,
        truncation=True,
        max_length=64,
        stride=20,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    best: dict[tuple[int, int], tuple[int, float]] = {}
    last = len(encoded["input_ids"]) - 1
    for number, (ids, offsets) in enumerate(
        zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ):
        with torch.inference_mode():
            scores = model(torch.tensor([ids])).logits[0].softmax(-1).max(-1).values.tolist()
        for place in range(1, len(ids) - 1):
            before = 10**6 if number == 0 else place
            after = 10**6 if number == last else len(ids) - 1 - place
            margin = min(before, after)
            if margin > best.get(offsets[place], (-1, 0.0))[0]:
                best[offsets[place]] = margin, scores[place]
    with engine_of(store, TokenTagger) as engine:
        options = TagOptions(aggregation=Aggregation.NONE, overlap_tokens=20)
        (ours,) = asyncio.run(engine.tag(TagRequest([text], options))).results
    assert isinstance(ours, TaggedText)
    assert ours.num_windows == last + 1 > 3
    assert [(e.start, e.end) for e in ours.entities] == sorted(best)
    assert [e.score for e in ours.entities] == pytest.approx([best[k][1] for k in sorted(best)], abs=1e-4)


def test_masked_words_are_those_of_a_transformers_pipeline() -> None:
    from aimass_exporters.progress import SilentProgress
    from aimass_exporters.sources.source import resolve_source
    from aimass_exporters.testing import cached_export

    store = cached_export("bert-tiny-splade", name="bert-tiny-mlm", task="fill-mask")
    oracle = pipeline_of("fill-mask", resolve_source("bert-tiny-splade", SilentProgress()).path)
    texts = ["The capital of France is [MASK].", "He [MASK] the ball into the [MASK]."]
    with engine_of(store, MaskFiller) as engine:
        plain = asyncio.run(engine.fill(FillRequest(texts, FillOptions(top_k=4)))).results
        targets = FillOptions(targets=("london", "Paris", "rome"))
        chosen = asyncio.run(engine.fill(FillRequest(texts[:1], targets))).results
    expected = [[oracle(texts[0], top_k=4)], oracle(texts[1], top_k=4)]
    expected.append([oracle(texts[0], targets=["london", "paris", "rome"])])
    for text, ours, theirs in zip([*texts, texts[0]], [*plain, *chosen], expected, strict=True):
        assert isinstance(ours, FilledText)
        assert [text[m.start : m.end] for m in ours.masks] == ["[MASK]"] * len(theirs)
        for mask, words in zip(ours.masks, theirs, strict=True):
            assert [w.token_id for w in mask.words] == [w["token"] for w in words]
            assert [w.text for w in mask.words] == [w["token_str"].removeprefix("##") for w in words]
            assert [w.score for w in mask.words] == pytest.approx([w["score"] for w in words], abs=1e-4)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("allow_no_answer", [False, True])
def test_answers_are_those_of_a_transformers_pipeline(
    exported: Callable[..., tuple[Path, Path]], allow_no_answer: bool
) -> None:
    folder, store = exported(TaskName.QUESTION_ANSWERING, max_tokens=40)
    oracle = pipeline_of("question-answering", folder)
    inputs = [("who built it?", CONTEXT), ("when was the flood", CONTEXT[:100]), ("where?", "By the river.")]
    with engine_of(store, QuestionAnswerer) as engine:
        options = AnswerOptions(
            top_k=4, max_answer_tokens=6, allow_no_answer=allow_no_answer, overlap_tokens=12
        )
        results = asyncio.run(engine.answer(AnswerRequest(inputs, options))).results
    for (question, context), ours in zip(inputs, results, strict=True):
        theirs = oracle(
            question=question,
            context=context,
            top_k=4,
            max_answer_len=6,
            max_seq_len=40,
            doc_stride=12,
            handle_impossible_answer=allow_no_answer,
        )
        assert isinstance(ours, AnsweredQuestion)
        assert [(a.text, a.start, a.end) for a in ours.answers] == [
            (a["answer"], a["start"], a["end"]) for a in theirs
        ]
        assert [a.score for a in ours.answers] == pytest.approx([a["score"] for a in theirs], abs=1e-4)
    assert isinstance(results[0], AnsweredQuestion)
    assert results[0].num_windows > 2


def test_next_sentences_are_those_of_pytorch(exported: Callable[..., tuple[Path, Path]]) -> None:
    import torch
    from transformers import AutoModelForNextSentencePrediction, AutoTokenizer

    folder, store = exported(TaskName.NEXT_SENTENCE_PREDICTION)
    pairs = [("It rains.", "We stay at home."), (TEXTS[0], TEXTS[1]), ("lamp", "river " * 100)]
    with engine_of(store, NextSentencePredictor) as engine:
        results = asyncio.run(engine.predict(NextSentenceRequest(pairs))).results
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForNextSentencePrediction.from_pretrained(folder).eval()
    for pair, ours in zip(pairs, results, strict=True):
        with torch.inference_mode():
            logits = model(**tokenizer(*pair, truncation=True, max_length=64, return_tensors="pt")).logits
        assert isinstance(ours, NextSentence)
        assert ours.score == pytest.approx(float(logits[0].softmax(-1)[0]), abs=1e-4)
    assert [r.num_truncated_tokens > 0 for r in results if isinstance(r, NextSentence)] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("multi_label", [False, True])
def test_own_labels_have_the_scores_of_a_transformers_pipeline(
    exported: Callable[..., tuple[Path, Path]], multi_label: bool
) -> None:
    labels = ["contradiction", "neutral", "entailment"]
    folder, store = exported(TaskName.TEXT_CLASSIFICATION, labels=labels)
    oracle = pipeline_of("zero-shot-classification", folder)
    asked, template = ["travel", "food", "a long walk"], "It is about {}."
    with engine_of(store, TextClassifier) as engine:
        options = ZeroShotOptions(hypothesis_template=template, multi_label=multi_label)
        reply = asyncio.run(classify_zero_shot(engine, ZeroShotRequest(TEXTS, asked, options)))
    expected = oracle(TEXTS, asked, hypothesis_template=template, multi_label=multi_label)
    for ours, theirs in zip(reply.results, expected, strict=True):
        assert isinstance(ours, ClassifiedText)
        assert [s.label for s in ours.labels] == theirs["labels"]
        assert [s.score for s in ours.labels] == pytest.approx(theirs["scores"], abs=1e-4)
