"""Pairs of texts: how they are cut, and which text the model is told a token belongs to."""

from __future__ import annotations

import numpy as np
import pytest
from aimass_encoder.request import Truncation
from aimass_encoder.tokenization import TextTokenizer, kept_tokens, shared_room
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

COUNTS = st.integers(0, 40)


@given(COUNTS, COUNTS, COUNTS)
def test_the_longer_text_is_cut_first_and_no_room_is_wasted(first: int, second: int, room: int) -> None:
    kept = shared_room(first, second, room)
    one_by_one = [first, second]
    while sum(one_by_one) > room:
        one_by_one[0 if one_by_one[0] > one_by_one[1] else 1] -= 1
    assert list(kept) == one_by_one


@given(COUNTS, COUNTS, st.integers(3, 60), st.sampled_from([Truncation.END, Truncation.START]))
def test_cutting_keeps_special_tokens_and_one_end_of_each_text(
    first: int, second: int, max_tokens: int, truncation: Truncation
) -> None:
    parts = np.array([-1, *[0] * first, -1, *[1] * second, -1])
    kept = kept_tokens(parts, max_tokens=max_tokens, truncation=truncation)
    assert len(kept) == min(len(parts), max_tokens)
    assert (parts[kept] == -1).sum() == 3
    for part in (0, 1):
        places = np.flatnonzero(parts == part)
        stays = kept[parts[kept] == part]
        end = places[: len(stays)]
        start = places[len(places) - len(stays) :]
        np.testing.assert_array_equal(stays, start if truncation is Truncation.START else end)


@pytest.fixture
def tokenizer() -> Tokenizer:
    words = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, **{chr(97 + i): 4 + i for i in range(26)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return tokenizer


def test_a_pair_keeps_its_types_and_a_text_alone_has_none(tokenizer: Tokenizer) -> None:
    alone, pair = TextTokenizer(tokenizer, max_tokens=7).tokenize(["a b", ("a b c d", "x y")], Truncation.END)
    assert alone.type_ids is None
    assert pair.token_ids.tolist() == [1, 4, 5, 2, 27, 28, 2]
    assert pair.type_ids is not None
    assert pair.type_ids.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert pair.num_truncated_tokens == 2


@given(st.text(alphabet="ab 你好🎸👨‍👩‍👧é\n", max_size=30))
def test_spans_are_places_in_the_callers_text(text: str) -> None:
    library = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "🎸": 2, "你好": 3}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (read,) = TextTokenizer(library, max_tokens=50).tokenize([text], Truncation.END, needs_spans=True)
    assert read.spans is not None
    found = [text[start:end] for start, end in read.spans.offsets.tolist()]
    assert found == text.split()
