"""Windows of long texts: nothing is lost, and they are those of the tokenizers library."""

from __future__ import annotations

import numpy as np
import pytest
from aimass_encoder.request import Truncation
from aimass_encoder.tokenization import TextTokenizer, TokenizedText
from aimass_encoder.windows import cut_windows, joined, most_central, window_room
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

MAX_TOKENS = 12


def library() -> Tokenizer:
    words = {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2, **{f"w{i}": 3 + i for i in range(60)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 0), ("[SEP]", 1)],
    )
    return tokenizer


def whole(text: str | tuple[str, str]) -> TokenizedText:
    tokenizer = TextTokenizer(library(), max_tokens=MAX_TOKENS)
    (tokenized,) = tokenizer.tokenize([text], Truncation.WINDOWS, needs_spans=True)
    return tokenized


def words(count: int) -> str:
    return " ".join(f"w{i}" for i in range(count))


@given(count=st.integers(1, 60), overlap=st.integers(0, 9))
def test_windows_of_a_text_are_those_of_the_library(count: int, overlap: int) -> None:
    oracle = library()
    oracle.enable_truncation(MAX_TOKENS, stride=overlap)
    first = oracle.encode(words(count))
    expected = [first.ids, *(more.ids for more in first.overflowing)]
    windows = cut_windows(whole(words(count)), max_tokens=MAX_TOKENS, overlap=overlap)
    assert [window.text.token_ids.tolist() for window in windows] == expected


@given(count=st.integers(1, 60), asked=st.integers(1, 6), overlap=st.integers(0, 2))
def test_windows_of_a_pair_move_over_its_second_text_only(count: int, asked: int, overlap: int) -> None:
    oracle = library()
    oracle.enable_truncation(MAX_TOKENS, stride=overlap, strategy="only_second")
    pair = (words(asked), words(count))
    first = oracle.encode(*pair)
    windows = cut_windows(whole(pair), max_tokens=MAX_TOKENS, overlap=overlap, part=1)
    assert [w.text.token_ids.tolist() for w in windows] == [first.ids, *(m.ids for m in first.overflowing)]
    for window in windows:
        assert window.text.type_ids is not None
        assert len(window.text.type_ids) == len(window.text.token_ids)


@given(count=st.integers(1, 60), overlap=st.integers(0, 9))
def test_every_token_comes_from_the_window_with_most_text_around_it(count: int, overlap: int) -> None:
    text = whole(words(count))
    num_tokens = len(text.token_ids)
    windows = cut_windows(text, max_tokens=MAX_TOKENS, overlap=overlap)
    chosen = most_central(windows, num_tokens=num_tokens)
    assert (chosen >= 0).all()
    values = [
        np.stack([w.places, np.full(len(w.places), i)], 1).astype(np.float32) for i, w in enumerate(windows)
    ]
    merged = joined(windows, values, num_tokens=num_tokens)
    assert merged[:, 0].tolist() == list(range(num_tokens))
    assert merged[:, 1].tolist() == chosen.tolist()
    assert (np.diff(chosen[1:-1]) >= 0).all()


def test_a_question_that_fills_the_model_leaves_no_room() -> None:
    assert window_room(whole((words(9), "w1 w2")), max_tokens=MAX_TOKENS, part=1) == 0


@pytest.mark.parametrize("truncation", [Truncation.END, Truncation.WINDOWS])
def test_only_windows_keep_what_does_not_fit(truncation: Truncation) -> None:
    tokenizer = TextTokenizer(library(), max_tokens=MAX_TOKENS)
    (tokenized,) = tokenizer.tokenize([words(20)], truncation)
    assert len(tokenized.token_ids) == (22 if truncation is Truncation.WINDOWS else MAX_TOKENS)
