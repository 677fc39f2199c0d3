"""Text grows token by token to exactly what the tokenizer decodes at once, for every kind of decoder."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from aimass_generation.detokenizer import TextDecoder, bytes_of_byte_level
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = [
    "the cat sat on the mat",
    "naïve café",
    "東京は夜の七時 你好、世界",
    "👩‍👩‍👧‍👦 👍🏽 😀😀",
    "x = [1, 2]\n\n",
]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens([AddedToken("<plain added 你>", special=False)])
    return tokenizer


def sentencepiece(*, strip: bool = True) -> Tokenizer:
    pieces = [
        "<s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁▁",
        "▁the",
        "▁cat",
        "a",
        "b",
        "你",
        "\ufffd",
    ]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<s>"))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if strip else [])])
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def metaspace() -> Tokenizer:
    vocab = {piece: index for index, piece in enumerate(["▁", "▁the", "▁cat", "a", "s", "你", "<s>"])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def wordpiece() -> Tokenizer:
    words = ["the", "cat", "##s", "##ly", ".", ",", "'", "n't", "a", "[SEP]"]
    tokenizer = Tokenizer(
        models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[SEP]")
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[SEP]"])
    return tokenizer


def word_suffix() -> Tokenizer:
    pieces = ["the</w>", "cat", "s</w>", "a</w>", "<s>"]
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    tokenizer.decoder = decoders.BPEDecoder()
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def no_decoder() -> Tokenizer:
    return Tokenizer(models.WordLevel({"the": 0, "cat": 1, "a": 2}, unk_token="a"))


def byte_level_in_a_sequence() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    kind.__name__: kind
    for kind in (
        byte_level,
        sentencepiece,
        metaspace,
        wordpiece,
        word_suffix,
        no_decoder,
        byte_level_in_a_sequence,
    )
} | {"sentencepiece_without_strip": lambda: sentencepiece(strip=False)}
BYTE_LEVEL_CHARS = {bytes_of_byte_level(char)[0]: str(char) for char in pre_tokenizers.ByteLevel.alphabet()}
DECODERS = {kind: (tokenizer := make(), TextDecoder(tokenizer)) for kind, make in KINDS.items()}


def streamed(decoder: TextDecoder, ids: list[int], *, continues_text: bool = False) -> list[str]:
    detokenizer = decoder.detokenizer(continues_text=continues_text)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=150)
def test_joined_pieces_equal_decoding_all_at_once(kind: str, data: st.DataObject) -> None:
    tokenizer, decoder = DECODERS[kind]
    # Three ids past the vocabulary: models pad their logits, and such a token has no text.
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() + 2), max_size=24))
    assert "".join(streamed(decoder, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "sentencepiece_without_strip"])
@given(data=st.data())
@settings(max_examples=300)
def test_joined_pieces_are_equal_for_broken_and_whole_bytes(kind: str, data: st.DataObject) -> None:
    tokenizer, decoder = DECODERS[kind]
    spelling = "<0x{:02X}>".format if kind.startswith("s") else BYTE_LEVEL_CHARS.__getitem__
    raw = data.draw(
        st.lists(
            st.one_of(st.binary(min_size=1, max_size=3), st.sampled_from(["😀".encode(), "你".encode()])),
            max_size=8,
        )
    )
    ids = [tokenizer.token_to_id(spelling(byte)) for byte in b"".join(raw)]
    assert "".join(streamed(decoder, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("text", CORPUS)
def test_no_piece_ends_inside_a_character(text: str) -> None:
    tokenizer, decoder = DECODERS["byte_level"]
    pieces = streamed(decoder, tokenizer.encode(text).ids)
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


def test_first_bytes_of_a_character_are_held_back_until_it_is_whole() -> None:
    tokenizer, decoder = DECODERS["byte_level"]
    detokenizer = decoder.detokenizer()
    ids = [tokenizer.token_to_id(BYTE_LEVEL_CHARS[byte]) for byte in "🦜".encode()]
    assert [detokenizer.push(token_id) for token_id in ids[:3]] == ["", "", ""]
    assert detokenizer.is_holding
    assert detokenizer.push(ids[3]) == "🦜"
    assert not detokenizer.is_holding


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_character_that_never_gets_whole_becomes_a_replacement_character(kind: str) -> None:
    tokenizer, decoder = DECODERS[kind]
    first = tokenizer.token_to_id("<0xF0>" if kind == "sentencepiece" else BYTE_LEVEL_CHARS[0xF0])
    assert streamed(decoder, [first]) == ["", "\ufffd"]


def test_text_after_a_text_keeps_the_space_that_a_beginning_loses() -> None:
    tokenizer, decoder = DECODERS["sentencepiece"]
    ids = [tokenizer.token_to_id("▁cat"), tokenizer.token_to_id("▁the")]
    assert "".join(streamed(decoder, ids)) == "cat the"
    assert "".join(streamed(decoder, ids, continues_text=True)) == " cat the"


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_continuation_is_what_decoding_adds_to_the_text_before(kind: str, data: st.DataObject) -> None:
    tokenizer, decoder = DECODERS[kind]
    before = tokenizer.encode("a", add_special_tokens=False).ids
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=12))
    pieces = streamed(decoder, ids, continues_text=True)
    assert tokenizer.decode(before) + "".join(pieces) == tokenizer.decode(
        before + ids, skip_special_tokens=True
    )


def test_long_runs_of_broken_bytes_do_not_pile_up() -> None:
    """The window stays short, and a byte-level decoder keeps at most the three bytes of one character."""
    tokenizer, decoder = DECODERS["byte_level"]
    broken = tokenizer.token_to_id(BYTE_LEVEL_CHARS[0xFF])
    detokenizer = decoder.detokenizer()
    assert [detokenizer.push(broken) for _ in range(1000)] == ["\ufffd"] * 1000


def test_special_tokens_show_only_when_asked_for() -> None:
    tokenizer, decoder = DECODERS["byte_level"]
    ids = [*tokenizer.encode("cat").ids, tokenizer.token_to_id("<|end|>")]
    assert decoder.decode(ids) == "cat"
    assert decoder.decode(ids, keep_special_tokens=True) == "cat<|end|>"
    assert decoder.decode(ids * 200, keep_special_tokens=True) == "cat<|end|>" * 200
