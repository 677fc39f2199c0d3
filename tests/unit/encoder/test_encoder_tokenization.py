"""Tokenising: what is cut is reported, special tokens stay, and the pool has one rule of admission."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest
from aimass_encoder.request import Truncation
from aimass_encoder.testing import WordTokenizer
from aimass_encoder.tokenization import CHUNK_CHARS, TextInput, TextTokenizer, TokenizedText, TokenizerPool
from aimass_serving.errors import Overloaded
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, **{chr(97 + i): 4 + i for i in range(26)}}


def library_tokenizer() -> Tokenizer:
    """Return a word-level tokeniser with one special token before and two after a text."""
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP] [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


@pytest.mark.parametrize(
    ("truncation", "kept"),
    [(Truncation.END, "a b c"), (Truncation.NONE, "a b c"), (Truncation.START, "d e f")],
)
def test_a_long_text_is_cut_on_the_chosen_side_and_keeps_its_special_tokens(
    truncation: Truncation, kept: str
) -> None:
    (cut,) = TextTokenizer(library_tokenizer(), max_tokens=6).tokenize(["a b c d e f"], truncation)
    assert cut.token_ids.tolist() == [1, *(WORDS[w] for w in kept.split()), 2, 2]
    assert cut.num_truncated_tokens == 3


@given(
    st.lists(st.sampled_from("abcdefgh"), max_size=20), st.sampled_from([Truncation.START, Truncation.END])
)
def test_cutting_agrees_with_the_library(words: list[str], truncation: Truncation) -> None:
    oracle = library_tokenizer()
    oracle.enable_truncation(8, direction="left" if truncation is Truncation.START else "right")
    (cut,) = TextTokenizer(library_tokenizer(), max_tokens=8).tokenize([" ".join(words)], truncation)
    assert cut.token_ids.tolist() == oracle.encode(" ".join(words)).ids
    assert cut.num_truncated_tokens == max(0, len(words) + 3 - 8)


def test_padding_and_cut_that_a_file_carries_are_switched_off() -> None:
    library = library_tokenizer()
    library.enable_padding(length=128)
    library.enable_truncation(4)
    (text,) = TextTokenizer(library, max_tokens=10).tokenize(["a b c"], Truncation.END)
    assert text.token_ids.tolist() == [1, 4, 5, 6, 2, 2]
    assert text.num_truncated_tokens == 0


async def test_the_pool_keeps_the_order_over_many_chunks() -> None:
    pool = TokenizerPool(WordTokenizer(max_tokens=8), num_threads=2, max_waiting_chars=10**9)
    texts = [f"w{i} " * (1 + i % 3) + "x" * (CHUNK_CHARS // 3) for i in range(10)]
    expected = WordTokenizer(max_tokens=8).tokenize(texts, Truncation.END)
    got = await pool.tokenize(texts, Truncation.END)
    pool.close()
    assert [t.token_ids.tolist() for t in got] == [t.token_ids.tolist() for t in expected]
    assert pool.waiting_chars == 0


class HeldTokenizer(WordTokenizer):
    """Waits until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()

    def tokenize(
        self, texts: Sequence[TextInput], truncation: Truncation, *, needs_spans: bool = False
    ) -> Sequence[TokenizedText]:
        assert self.let_go.wait(timeout=30)
        return super().tokenize(texts, truncation)


async def test_a_full_pool_refuses_one_text_and_many_alike() -> None:
    tokenizer = HeldTokenizer()
    pool = TokenizerPool(tokenizer, num_threads=1, max_waiting_chars=5)
    first = asyncio.create_task(pool.tokenize(["a b c"], Truncation.END))
    await asyncio.sleep(0)
    for texts in (["a"], ["a", "b", "c"]):
        with pytest.raises(Overloaded):
            await pool.tokenize(texts, Truncation.END)
    tokenizer.let_go.set()
    assert len(await first) == 1
    assert len(await pool.tokenize(["a long text that alone is over the bound"], Truncation.END)) == 1
    pool.close()


async def test_a_cancelled_call_gives_its_place_back() -> None:
    tokenizer = HeldTokenizer()
    pool = TokenizerPool(tokenizer, num_threads=1, max_waiting_chars=5)
    call = asyncio.create_task(pool.tokenize(["a b c"], Truncation.END))
    await asyncio.sleep(0)
    assert pool.waiting_chars == 5
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert pool.waiting_chars == 0
    tokenizer.let_go.set()
    pool.close()
