"""Places in the caller's own text, whatever it is written in, with BERT's real tokenizer.

The model labels every token, so that every place a token can have is seen.
"""

from __future__ import annotations

import asyncio
import shutil
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from aimass_encoder.entities import Aggregation
from aimass_encoder.loader import load_engine
from aimass_encoder.tagging import TaggedText, TagOptions, TagRequest
from aimass_encoder.token_tagger import TokenTagger
from aimass_exporters.sources.catalogue import TaskName
from aimass_serving.compute import ComputePermit
from aimass_serving.errors import InvalidField
from aimass_serving.service import LoadContext
from aimass_serving.session import Device, SessionConfig
from aimass_serving.store import open_store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

PIECES = [
    *["Berlin", "São", "Sa\u0303o", "naïve", "nai\u0308ve", "ﬁn", "İzmir", "Straße", "1928", "don't", "x"],
    *["東京都", "北京", "서울", "한\u1100\u1161", "เชียงใหม่", "हिन्दी", "שָׁלוֹם", "مرحبا"],
    *["🙂", "👩\u200d🚀", "👍🏽", "🇩🇪", "❤️", "1️⃣", "\U0001d518\U0001d52b", "…", "—", "(", ",", "#tag"],
    *[" ", "  ", "\n", "\t", "\u00a0", "\u3000", "\u200b", "\ufeff", "\x07", "[MASK]"],
]
LONG = "東京 and São Paulo 🙂 " * 40


@pytest.fixture(scope="module")
def tagger_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from aimass_exporters.testing import cached_export
    from aimass_exporters.tiny_encoders import write_tiny_bert

    folder: Path = tmp_path_factory.mktemp("tagger") / "model"
    write_tiny_bert(folder, TaskName.TOKEN_CLASSIFICATION, labels=["X", "Y", "Z"])
    return cached_export(folder, name="tiny-every-token", task="token-classification")


@pytest.fixture(scope="module")
def tagger(tagger_store: Path) -> Iterator[TokenTagger]:
    engine = opened(tagger_store)
    yield engine
    engine.close()


def opened(store: Path) -> TokenTagger:
    (ref,) = open_store(str(store)).list()
    context = LoadContext(SessionConfig(device=Device.CPU), ComputePermit())
    engine = load_engine(open_store(str(store)).open(ref), context)
    assert isinstance(engine, TokenTagger)
    return engine


def test_labels_are_chosen_together_where_the_bundle_says_how_they_follow_one_another(
    tagger_store: Path, tmp_path: Path
) -> None:
    """Transitions that forbid a label after itself: neighbours then differ, and did not before."""
    from aimass_serving.testing import write_manifest

    copy = tmp_path / "store"
    shutil.copytree(tagger_store, copy)
    (ref,) = open_store(str(copy)).list()
    bundle = open_store(str(copy)).open(ref)
    bundle.manifest.encoder.label_transitions.extend([-1e4, 0, 0, 0, -1e4, 0, 0, 0, -1e4])
    write_manifest(bundle.path, bundle.manifest)
    repeats = []
    for store in (tagger_store, copy):
        engine = opened(store)
        result = tagged(engine, LONG, Aggregation.NONE)
        engine.close()
        assert isinstance(result, TaggedText)
        labels = [entity.label for entity in result.entities]
        repeats.append(sum(a == b for a, b in pairwise(labels)))
    assert repeats[0] > 0
    assert repeats[1] == 0


def tagged(tagger: TokenTagger, text: str, aggregation: Aggregation) -> TaggedText | Exception:
    (result,) = asyncio.run(tagger.tag(TagRequest([text], TagOptions(aggregation=aggregation)))).results
    return result


def is_seen(character: str) -> bool:
    """Whether BERT's tokenizer reads a character: it drops accents, controls and what stands for nothing."""
    return unicodedata.category(character)[0] in "LNPS" and not character.isspace()


# The engine's queue belongs to the event loop of a call: nothing of it stays from one example to the next.
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.lists(st.sampled_from(PIECES), min_size=1, max_size=10).map("".join),
    aggregation=st.sampled_from(list(Aggregation)),
)
def test_entities_lie_side_by_side_on_whole_characters_of_the_callers_text(
    tagger: TokenTagger, text: str, aggregation: Aggregation
) -> None:
    result = tagged(tagger, text, aggregation)
    if isinstance(result, Exception):
        assert isinstance(result, InvalidField)
        assert not any(is_seen(c) for c in text)
        return
    covered: set[int] = set()
    end = 0
    for entity in result.entities:
        piece = text[entity.start : entity.end]
        assert end <= entity.start < entity.end <= len(text)
        assert piece == piece.strip()
        assert entity.end == len(text) or not unicodedata.combining(text[entity.end])
        covered |= set(range(entity.start, entity.end))
        end = entity.end
    assert all(place in covered for place, character in enumerate(text) if is_seen(character))


def test_a_long_text_has_an_entity_at_every_word_in_every_window(tagger: TokenTagger) -> None:
    result = tagged(tagger, LONG, Aggregation.FIRST)
    assert isinstance(result, TaggedText)
    assert result.num_windows > 4
    assert [LONG[e.start : e.end] for e in result.entities] == ["東", "京", "and", "São", "Paulo", "🙂"] * 40
