"""Prompts become the ids the model was trained to see, or a refusal that names the field."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import jinja2
import numpy as np
import pytest
from aimass_generation.chat_template import ChatTemplate
from aimass_generation.prompt import PromptEncoder
from aimass_generation.request import ChatMessage, ChatPrompt, GenerationRequest, TextPrompt, TokenPrompt
from aimass_serving.errors import InvalidField, InvalidFields
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers.utils.chat_template_utils import render_jinja_template

CHATML = (
    "{% for message in messages %}"
    "{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
EXACTING = """
{%- set date = strftime_now('%Y-%m-%d') %}
{{- bos_token + date }}
{%- if tools is not none or documents is not none %}{{ raise_exception('no tools here') }}{% endif %}
{% for message in messages %}
    {% if message.role == 'noise' %}{% continue %}{% endif %}
    {% if message.role not in ('system', 'user', 'assistant') %}
        {{ raise_exception('Unknown role: ' + message.role) }}
    {% endif %}
    {{ message | tojson }}
    {% generation %}{{ message['content'] | trim }}{% endgeneration %}

{% endfor %}
"""
CONVERSATION = [
    ("system", "Be <brief> & kind."),
    ("user", "Où est l'été? 東京 😀"),
    ("assistant", "  Here. "),
]


def byte_tokenizer() -> Tokenizer:
    """One token a byte, and `<s>` (256), `<|start|>` (257), `<|end|>` (258)."""
    alphabet = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "<|start|>", "<|end|>"])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 256)])
    return tokenizer


def encoder(template: str | None = CHATML, *, vocab_size: int = 259) -> PromptEncoder:
    chat_template = ChatTemplate(template, special_tokens={}) if template else None
    return PromptEncoder(byte_tokenizer(), vocab_size=vocab_size, chat_template=chat_template)


def chat(*turns: tuple[str, str]) -> ChatPrompt:
    return ChatPrompt(tuple(ChatMessage(role, content) for role, content in turns))


def refused(call: Any, *args: Any) -> tuple[str, str]:
    with pytest.raises(InvalidFields) as caught:
        call(*args)
    (violation,) = caught.value.violations
    return violation.field, violation.description


def test_text_gets_the_special_tokens_of_the_model() -> None:
    ids = encoder().encode(TextPrompt("ab"))
    assert ids.dtype == np.int64
    assert byte_tokenizer().decode(ids.tolist(), skip_special_tokens=False) == "<s>ab"


def test_token_ids_are_used_as_they_are() -> None:
    assert encoder().encode(TokenPrompt((3, 258, 0))).tolist() == [3, 258, 0]


def test_token_id_outside_the_vocabulary_is_refused_with_its_place() -> None:
    assert refused(encoder().encode, TokenPrompt((0, 1, 2, 259))) == (
        "token_ids.ids[3]",
        "expected a token id from 0 to 258, got 259",
    )
    assert refused(encoder().encode, TokenPrompt((-1,)))[0] == "token_ids.ids[0]"


def test_chat_is_laid_out_by_the_template_without_further_special_tokens() -> None:
    ids = encoder().encode(chat(("user", "hi")))
    text = byte_tokenizer().decode(ids.tolist(), skip_special_tokens=False)
    assert text == "<|start|>user\nhi<|end|>\n<|start|>assistant\n"
    assert ids[0] == 257


def test_chat_for_a_model_without_a_template_is_refused() -> None:
    field, description = refused(encoder(None).encode, chat(("user", "hi")))
    assert field == "chat"
    assert "no chat template" in description


def test_text_with_a_token_the_model_lacks_is_refused() -> None:
    """A tokenizer may have gained tokens that the embedding never had."""
    assert encoder(vocab_size=258).encode(TextPrompt("a")).max() < 258
    assert refused(encoder(vocab_size=258).encode, TextPrompt("a<|end|>"))[0] == "text"


def test_text_that_leaves_no_token_is_refused() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    prompts = PromptEncoder(tokenizer, vocab_size=1)
    assert refused(prompts.encode, TextPrompt("b"))[0] == "text"


def test_lone_surrogate_is_refused_and_not_a_crash() -> None:
    assert refused(encoder().encode, TextPrompt("a\ud800b"))[0] == "text"
    assert refused(encoder().encode, chat(("user", "\udfff")))[0] == "chat"


@given(st.text(min_size=1).filter(lambda text: "<" not in text))
def test_any_text_survives_the_way_to_ids_and_back(text: str) -> None:
    ids = TOKENS.encode(TextPrompt(text)).tolist()
    assert BYTES.decode(ids) == text


BYTES = byte_tokenizer()
TOKENS = encoder()


@pytest.mark.parametrize("source", [CHATML, EXACTING])
def test_template_renders_as_transformers_renders_it(source: str) -> None:
    special: dict[str, Any] = {"bos_token": "<s>", "eos_token": "<|end|>"}
    ours = ChatTemplate(source, special_tokens=special).render(chat(*CONVERSATION, ("noise", "?")).messages)
    turns = [{"role": role, "content": content} for role, content in [*CONVERSATION, ("noise", "?")]]
    theirs: Any = render_jinja_template([turns], chat_template=source, add_generation_prompt=True, **special)
    assert ours == theirs[0][0]


def test_template_reads_the_given_clock() -> None:
    template = ChatTemplate(
        "{{ strftime_now('%d %b %Y') }}", special_tokens={}, now=lambda: datetime(2026, 2, 3, 12)
    )
    assert template.render(()) == "03 Feb 2026"


def test_json_in_a_template_keeps_quotes_and_letters() -> None:
    text = ChatTemplate("{{ messages[0] | tojson }}", special_tokens={}).render(
        chat(("user", "<é>'")).messages
    )
    assert json.loads(text) == {"role": "user", "content": "<é>'"}
    assert "<é>'" in text


def test_refusal_of_a_template_carries_its_reason() -> None:
    field, description = refused(
        ChatTemplate(EXACTING, special_tokens={"bos_token": ""}).render, chat(("tool", "x")).messages
    )
    assert field == "chat"
    assert description.endswith("Unknown role: tool")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0]['content'] + 1 }}",
        "{{ messages[5].content.x }}",
        "{{ 1 // 0 }}",
        "{{ missing_function() }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for i in range(99999999) %}x{% endfor %}",
    ],
)
def test_failing_or_escaping_template_is_a_refusal(source: str) -> None:
    template = ChatTemplate(source, special_tokens={})
    assert refused(template.render, chat(("user", "x")).messages)[0] == "chat"


TOOL_TEMPLATE = """{%- if tools %}tools: {% for tool in tools %}{{ tool | tojson }};{% endfor %}{% endif %}
{%- for m in messages %}<{{ m.role }}{% if m.name is defined %} {{ m.name }}{% endif %}>{{ m.content }}
{%- for c in m.tool_calls or [] %}[{{ c.function.name }}{{ c.function.arguments | tojson }}]{% endfor %}
{%- endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "é": [1]}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Zürich"}}}


def test_tools_and_their_calls_are_laid_out_as_transformers_does() -> None:
    """A conversation of several turns in which the model called a function and read its result."""
    turns = (
        ChatMessage("user", "warm?"),
        ChatMessage("assistant", "", (json.dumps(CALL),)),
        ChatMessage("tool", "21 °C", name="weather"),
        ChatMessage("assistant", "Yes."),
        ChatMessage("user", "sure?"),
    )
    text = ChatTemplate(TOOL_TEMPLATE, special_tokens={}).render(turns, [json.dumps(WEATHER)])
    same: list[dict[str, Any]] = [
        {"role": "user", "content": "warm?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "21 °C", "name": "weather"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "sure?"},
    ]
    rendered: Any = render_jinja_template(
        [same], tools=[WEATHER], chat_template=TOOL_TEMPLATE, add_generation_prompt=True
    )
    assert [text] == rendered[0]
    assert '"name": "weather"' in text
    assert text.endswith("<assistant>")


def test_a_template_reads_tools_and_cannot_change_or_run_them() -> None:
    evil = json.dumps({"name": "{{ 7 * 7 }}", "x": "{% raw %}"})
    text = ChatTemplate("{{ tools[0].name }}", special_tokens={}).render(chat(("user", "x")).messages, [evil])
    assert text == "{{ 7 * 7 }}"
    changing = ChatTemplate("{{ tools[0].update({'a': 1}) }}", special_tokens={})
    assert refused(changing.render, chat(("user", "x")).messages, ['{"name": "f"}'])[0] == "chat"


@pytest.mark.parametrize(
    ("tools", "field"),
    [
        (("[]",), "chat.tools[0]"),
        (("{}", "{"), "chat.tools[1]"),
        (("[" * 100_000,), "chat.tools[0]"),
        (("{}",) * 129, "chat.tools"),
        (('{"a": "' + "x" * 262_144 + '"}',), "chat.tools"),
    ],
)
def test_tools_that_are_no_functions_are_refused_by_place(tools: tuple[str, ...], field: str) -> None:
    with pytest.raises(InvalidFields) as caught:
        GenerationRequest(ChatPrompt((ChatMessage("user", "x"),), tools))
    assert [violation.field for violation in caught.value.violations] == [field]
    with pytest.raises(InvalidFields) as caught:
        GenerationRequest(ChatPrompt((ChatMessage("user", "x", tools),)))
    expected = field.replace("chat.tools", "chat.messages[0].tool_calls")
    assert [violation.field for violation in caught.value.violations] == [expected]


def test_words_of_a_caller_are_never_run_as_a_template() -> None:
    evil = "{{ 7 * 7 }}{% raw %}"
    text = ChatTemplate(CHATML, special_tokens={}).render(chat(("user", evil)).messages)
    assert evil in text


def test_template_that_does_not_compile_says_so_at_once() -> None:
    with pytest.raises(jinja2.TemplateError):
        ChatTemplate("{% for %}", special_tokens={})


def test_refusals_are_invalid_fields() -> None:
    with pytest.raises(InvalidField):
        encoder().encode(TokenPrompt((999,)))
