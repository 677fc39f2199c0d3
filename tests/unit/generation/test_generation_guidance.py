"""Texts held to a form: whatever the model would like to say, what it says matches."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from aimass_decoding.testing import FakeDecoder, hashed_logits
from aimass_generation.engine import GenerationEngine
from aimass_generation.guidance import MAX_SCHEMA_CHARS, Guidance, GuidanceCompiler, GuidanceKind
from aimass_generation.request import GenerationRequest, SamplingOptions, StoppingOptions, TextPrompt
from aimass_generation.result import Completion, FinishReason
from aimass_generation.testing import (
    END,
    VOCAB_SIZE,
    byte_tokenizer,
    fake_generation_engine,
    scripted_decoder,
)
from aimass_serving.errors import InvalidFields
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

COMPILER = GuidanceCompiler(byte_tokenizer(), vocab_size=VOCAB_SIZE, eos_token_ids=frozenset([END]))
ODD_CHOICES = (
    'say "no"',
    "back\\slash",
    "new\nline",
    "\x7f\x01",
    "日本 🙂",
    "<|",
    "/a+/ | b",
    "a",
    "ab",
)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer", "maximum": 999}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
ARITHMETIC = 'start: term ("+" term)~0..3\nterm: /[0-9]{1,3}/ | "(" start ")"'


def schema(value: object) -> Guidance:
    return Guidance(GuidanceKind.JSON_SCHEMA, json.dumps(value))


def regex(source: str) -> Guidance:
    return Guidance(GuidanceKind.REGEX, source)


def walk(guidance: Guidance, *, seed: int, compiler: GuidanceCompiler = COMPILER) -> str:
    """Return a text whose every byte is drawn from those the mask allows, up to where it may end."""
    generator, mask, text = np.random.default_rng(seed), compiler.compile(guidance)(), bytearray()
    for _ in range(5000):
        words = mask.allowed()
        assert words is not None
        (allowed,) = np.nonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
        chosen = END if END in allowed else int(generator.choice(allowed))
        if chosen == END:
            return text.decode()
        text.append(chosen)
        mask.accept(chosen)
    raise AssertionError("the text does not end")


@pytest.fixture
def engine() -> Iterator[GenerationEngine]:
    """An engine whose model likes tokens by chance, the same for the same text before."""
    engine = fake_generation_engine(FakeDecoder(hashed_logits(VOCAB_SIZE)))
    yield engine
    engine.close()


def asked(guidance: Guidance | None, *, seed: int = 0, prompt: str = "x", **fields: Any) -> GenerationRequest:
    sampling = SamplingOptions(temperature=1.0, seed=seed) if seed else SamplingOptions(temperature=0)
    stopping = StoppingOptions(max_new_tokens=400)
    return GenerationRequest(
        TextPrompt(prompt), **({"guidance": guidance, "sampling": sampling, "stopping": stopping} | fields)
    )


def completions(engine: GenerationEngine, *requests: GenerationRequest) -> list[Completion]:
    """Run requests side by side."""

    async def run() -> list[Completion]:
        return list(await asyncio.gather(*map(engine.complete, requests)))

    return asyncio.run(run())


@pytest.mark.parametrize("seed", range(5))
def test_text_matches_the_regular_expression_as_a_whole(engine: GenerationEngine, seed: int) -> None:
    pattern = r"(\+49|0)[0-9]{2,5} [0-9]{4,8}"
    (completion,) = completions(engine, asked(regex(pattern), seed=seed))
    assert re.fullmatch(pattern, completion.text)
    assert completion.finish.reason is FinishReason.EOS


@pytest.mark.parametrize("choice", ODD_CHOICES)
def test_text_is_one_of_the_choices_letter_by_letter(engine: GenerationEngine, choice: str) -> None:
    guidance = Guidance(GuidanceKind.CHOICE, choices=(choice,))
    assert completions(engine, asked(guidance))[0].text == choice


def test_every_choice_can_come() -> None:
    guidance = Guidance(GuidanceKind.CHOICE, choices=("yes", "no", "maybe"))
    assert {walk(guidance, seed=seed) for seed in range(30)} == {"yes", "no", "maybe"}


@pytest.mark.parametrize("seed", range(5))
def test_text_is_a_json_document_of_the_schema(engine: GenerationEngine, seed: int) -> None:
    (completion,) = completions(engine, asked(schema(PERSON), seed=seed))
    assert holds(PERSON, json.loads(completion.text)), completion.text
    assert completion.finish.reason is FinishReason.EOS


def test_text_is_a_json_object() -> None:
    texts = [walk(Guidance(GuidanceKind.JSON_OBJECT), seed=seed) for seed in range(10)]
    assert all(isinstance(json.loads(text), dict) for text in texts)


@pytest.mark.parametrize("seed", range(5))
def test_text_is_of_the_grammar(seed: int) -> None:
    text = walk(Guidance(GuidanceKind.GRAMMAR, ARITHMETIC), seed=seed)
    depth = 0
    for char in text:
        depth += {"(": 1, ")": -1}.get(char, 0)
        assert depth >= 0
    assert depth == 0
    assert re.fullmatch(r"[0-9+()]+", text)


def test_model_says_what_it_likes_as_far_as_it_may() -> None:
    script = '{"name": "Ada", "age": 36}'
    engine = fake_generation_engine(scripted_decoder({"x": script}))
    try:
        assert completions(engine, asked(schema(PERSON)))[0].text == script
    finally:
        engine.close()


def test_text_does_not_end_before_the_form_is_complete() -> None:
    """The scripted model wants to end at once."""
    engine = fake_generation_engine(scripted_decoder({"x": ""}))
    try:
        assert re.fullmatch(r"[0-9]{3}", completions(engine, asked(regex("[0-9]{3}")))[0].text)
        assert completions(engine, asked(regex("[0-9]*")))[0].text == ""
    finally:
        engine.close()


def test_text_that_is_cut_short_says_so(engine: GenerationEngine) -> None:
    request = asked(regex("[a-z]{50}"), stopping=StoppingOptions(max_new_tokens=7))
    (completion,) = completions(engine, request)
    assert re.fullmatch("[a-z]{7}", completion.text)
    assert completion.finish.reason is FinishReason.MAX_NEW_TOKENS


def test_several_sequences_are_each_held_to_the_form(engine: GenerationEngine) -> None:
    (completion,) = completions(engine, asked(regex("[a-f]{12}"), seed=3, num_sequences=4))
    texts = [completion.text, *(further.text for further in completion.further)]
    assert all(re.fullmatch("[a-f]{12}", text) for text in texts)
    assert len(set(texts)) > 1


def test_guided_and_free_texts_do_not_influence_one_another(engine: GenerationEngine) -> None:
    forms = [schema(PERSON), None, regex("[0-9]{20}"), None] * 2
    short = StoppingOptions(max_new_tokens=60)
    requests = [
        asked(form, seed=seed, prompt=f"p{seed}", stopping=short) for seed, form in enumerate(forms, start=1)
    ]
    alone = [completions(engine, request)[0].text for request in requests]
    assert [completion.text for completion in completions(engine, *requests)] == alone


@pytest.mark.parametrize(
    ("guidance", "detail"),
    [
        (schema({"type": "string", "minLength": 5, "maxLength": 2}), "minLength"),
        (schema({"type": "integer", "minimum": 5, "maximum": 3}), "minimum"),
        (schema({"enum": []}), "Unsatisfiable"),
        (schema(False), "Unsatisfiable"),
        (schema({"not": {}}), "not"),
        (schema({"type": "nothing"}), "nothing"),
        (schema([]), "object or a boolean"),
        (schema(None), "object or a boolean"),
        (schema({"$ref": "#/$defs/missing"}), "missing"),
        (schema({"$ref": "http://localhost:1/schema.json"}), "retriev"),
        (Guidance(GuidanceKind.JSON_SCHEMA, "{"), "a JSON schema"),
        (Guidance(GuidanceKind.JSON_SCHEMA, "[" * 50_000), "nested"),
        (schema({"type": "array", "items": {"$ref": "#"}, "minItems": 1}), "no end"),
        (regex("("), "unclosed group"),
        (regex(r"(a)\1"), "references"),
        (regex("(?=a)b"), "look-around"),
        (regex(r"[^\s\S]"), "no text"),
        (Guidance(GuidanceKind.GRAMMAR, "start: missing"), "missing"),
        (Guidance(GuidanceKind.GRAMMAR, 'start: start "a"'), "no text"),
        (Guidance(GuidanceKind.GRAMMAR, "not a grammar"), "Expected token"),
    ],
)
def test_form_that_nothing_satisfies_is_refused_by_name(guidance: Guidance, detail: str) -> None:
    with pytest.raises(InvalidFields, match=re.escape(detail)) as refused:
        COMPILER.compile(guidance)
    assert [violation.field for violation in refused.value.violations] == [f"guidance.{guidance.kind}"]


@pytest.mark.parametrize(
    "guidance",
    [
        regex("((a{100}){100}){100}"),
        regex("a{1000000}"),
        schema(
            {"allOf": [{"anyOf": [{"properties": {f"{i}_{j}": {}}} for j in range(9)]} for i in range(9)]}
        ),
        schema({"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(1500)}}),
    ],
    ids=["nested repeats", "a long repeat", "a product of choices", "many optional properties"],
)
def test_bomb_is_refused_and_leaves_other_threads_running(guidance: Guidance) -> None:
    """Bounded by work, not by time: the bound here is far above what the work takes on a busy machine."""
    longest_s, is_over = [0.0], threading.Event()

    def watch() -> None:
        last_s = time.monotonic()
        while not is_over.wait(0.005):
            longest_s[0] = max(longest_s[0], time.monotonic() - last_s)
            last_s = time.monotonic()

    watcher = threading.Thread(target=watch)
    watcher.start()
    started_s = time.monotonic()
    try:
        with pytest.raises(InvalidFields):
            walk(guidance, seed=0)
    finally:
        is_over.set()
        watcher.join()
    taken_s = time.monotonic() - started_s
    assert taken_s < 30
    assert longest_s[0] < max(1.0, taken_s / 2)


def test_form_that_proves_too_costly_ends_its_text_only(engine: GenerationEngine) -> None:
    costly, plain = asked(regex(r"(\w{1,1000}){1,1000}"), seed=1), asked(regex("[a-z]{30}"), seed=2)

    async def run() -> list[Any]:
        calls = [engine.complete(costly), engine.complete(plain)]
        return list(await asyncio.gather(*calls, return_exceptions=True))

    refused, completion = asyncio.run(run())
    assert isinstance(refused, InvalidFields), refused
    assert refused.violations[0].field == "guidance.regex"
    assert re.fullmatch("[a-z]{30}", completion.text)


@pytest.mark.parametrize(
    ("guidance", "field"),
    [
        (Guidance(GuidanceKind.JSON_SCHEMA, " " * (MAX_SCHEMA_CHARS + 1)), "guidance.json_schema"),
        (Guidance(GuidanceKind.REGEX, ""), "guidance.regex"),
        (Guidance(GuidanceKind.REGEX, "a" * 8193), "guidance.regex"),
        (Guidance(GuidanceKind.GRAMMAR, ""), "guidance.grammar"),
        (Guidance(GuidanceKind.CHOICE), "guidance.choice.texts"),
        (Guidance(GuidanceKind.CHOICE, choices=("a",) * 1025), "guidance.choice.texts"),
        (Guidance(GuidanceKind.CHOICE, choices=("a", "")), "guidance.choice.texts[1]"),
        (Guidance(GuidanceKind.CHOICE, choices=("a" * 1025,)), "guidance.choice.texts[0]"),
        (Guidance(GuidanceKind.CHOICE, choices=("a" * 1024,) * 65), "guidance.choice.texts"),
    ],
)
def test_form_of_the_wrong_size_is_refused_before_it_is_looked_at(guidance: Guidance, field: str) -> None:
    with pytest.raises(InvalidFields) as refused:
        asked(guidance)
    assert [violation.field for violation in refused.value.violations] == [field]


def test_options_that_could_leave_no_token_are_refused_with_a_form() -> None:
    with pytest.raises(InvalidFields) as refused:
        asked(
            regex("a"),
            stopping=StoppingOptions(ignore_eos=True),
            sampling=SamplingOptions(allowed_token_ids=(1, 2)),
        )
    fields = {violation.field for violation in refused.value.violations}
    assert fields == {"stopping.ignore_eos", "sampling.allowed_token_ids"}


def test_model_that_cannot_end_a_text_cannot_be_guided() -> None:
    endless = GuidanceCompiler(byte_tokenizer(), vocab_size=VOCAB_SIZE, eos_token_ids=frozenset())
    with pytest.raises(InvalidFields, match="no token that ends"):
        endless.compile(regex("a"))


def test_tokenizer_that_spells_no_bytes_is_refused_and_not_the_service() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[END]": 2}, unk_token="a"))
    compiler = GuidanceCompiler(words, vocab_size=3, eos_token_ids=frozenset([2]))
    with pytest.raises(InvalidFields, match="cannot be guided"):
        compiler.compile(regex("a"))


@pytest.mark.parametrize("token", ["<|end|>", "<|start|>"])
def test_form_that_spells_a_special_token_does_not_choose_it(token: str) -> None:
    """It would end the text, or be left out of it."""
    with pytest.raises(InvalidFields, match="special token"):
        COMPILER.compile(Guidance(GuidanceKind.CHOICE, choices=(token,)))
    free = Guidance(GuidanceKind.CHOICE, choices=(token, "<a"))
    assert {walk(free, seed=seed) for seed in range(20)} == {token, "<a"}


def test_rows_beyond_the_tokenizer_are_never_allowed() -> None:
    """Models pad their vocabulary to a round number."""
    padded = GuidanceCompiler(byte_tokenizer(), vocab_size=320, eos_token_ids=frozenset([END]))
    words = padded.compile(regex("(?s:.*)"))().allowed()
    assert words is not None
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    assert len(bits) == 320
    assert not bits[END + 1 :].any()
    assert bits[END]


SIMPLE = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, width: {"type": "integer", "minimum": low, "maximum": low + width},
        st.integers(-50, 50),
        st.integers(0, 500),
    ),
    st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 6)),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.text(max_size=4) | st.integers(-(2**53), 2**53), min_size=1, max_size=4),
    ),
)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), min_size=1, max_size=5)


def objects(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(NAMES, values, min_size=1, max_size=3).map(
        lambda properties: {
            "type": "object",
            "properties": properties,
            "required": sorted(properties)[:2],
            "additionalProperties": False,
        }
    )


def arrays(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda items, least, more: {
            "type": "array",
            "items": items,
            "minItems": least,
            "maxItems": least + more,
        },
        values,
        st.integers(0, 2),
        st.integers(0, 2),
    )


SCHEMAS = st.recursive(SIMPLE, lambda inner: objects(inner) | arrays(inner), max_leaves=6)


def holds(schema: dict[str, Any], value: Any) -> bool:
    """Judge a document by the few keywords used here, independently of the compiler."""
    if "enum" in schema:
        return value in schema["enum"]
    match schema["type"]:
        case "object":
            parts = schema["properties"]
            return (
                isinstance(value, dict)
                and set(schema["required"]) <= set(value) <= set(parts)
                and all(holds(parts[name], part) for name, part in value.items())
            )
        case "array":
            is_long_enough = (
                isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
            )
            return is_long_enough and all(holds(schema["items"], part) for part in value)
        case "integer":
            least, most = schema.get("minimum", -np.inf), schema.get("maximum", np.inf)
            return type(value) is int and least <= value <= most
        case "string":
            return isinstance(value, str) and len(value) <= schema["maxLength"]
        case "boolean":
            return isinstance(value, bool)
        case _:
            return value is None


@settings(max_examples=60)
@given(SCHEMAS, st.integers(0, 2**32 - 1))
def test_random_text_of_any_schema_is_json_that_satisfies_it(wanted: dict[str, Any], seed: int) -> None:
    text = walk(schema(wanted), seed=seed)
    assert holds(wanted, json.loads(text)), (wanted, text)
