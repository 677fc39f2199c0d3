"""LAC as a token classifier: its weights in PyTorch, its characters as a tokenizer, its labels.

What the package keeps apart is folded together: a character that is read as another one (full width,
traditional, upper case) has that one's embedding as a token of its own, so that the tokenizer changes no
text and places are the caller's.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from aimass_exporters.bundles.text_tokenizer import TextTokenizer
from aimass_exporters.encoders.bigru_tagger import BiGruConfig, BiGruTagger, reordered_gates
from aimass_exporters.sources.lac_package import GruLayer, LacPackage, LacWeights

MAX_TOKENS = 512
"""Characters of a window. The layers have no limit of their own, but hardly remember what is so far away."""
CHINESE_PASSAGES = (
    "百度是一家高科技公司，李彦宏在北京市创办了它。",
    "我的iPhone 15 Pro很好用😀，價格是5999元！",
    "他于２０２０年３月５日去了ＵＳＡ。",
    "好",
    "中国科学院计算技术研究所的研究员张伟昨天在上海作了报告，介绍了最新的机器翻译成果。" * 6,
    "Hello, world! 今天天气真不错，我们一起去公园散步吧。",
    "这本书　很有意思\n第二行",
    "国务院总理在人民大会堂会见了来访的法国总统，双方就经贸合作交换了意见。",
)
"""What parity is measured on."""
_PAD, _UNKNOWN = "[PAD]", "[UNK]"
"""No text holds them: tokens are single characters."""


def lac_tagger(package: LacPackage) -> BiGruTagger:
    """Return the model in evaluation mode. Raises `InvalidCheckpoint`."""
    weights = package.weights()
    rows = [package.unknown, *package.characters().values()]
    embeddings = np.concatenate([np.zeros_like(weights.embeddings[:1]), weights.embeddings[rows]])
    config = BiGruConfig(
        vocab_size=len(embeddings),
        embedding_size=embeddings.shape[1],
        hidden_size=weights.layers[0].recurrent.shape[-1],
        num_hidden_layers=len(weights.layers),
        labels=package.labels,
    )
    tagger = BiGruTagger(config)
    state = {
        "embeddings.weight": torch.from_numpy(embeddings),
        "classifier.weight": torch.from_numpy(weights.projection[:, package.outputs].T.copy()),
        "classifier.bias": torch.from_numpy(weights.bias[package.outputs]),
        **_recurrent_state(weights),
    }
    tagger.load_state_dict(state)
    tagger.train(False)
    return tagger


def _recurrent_state(weights: LacWeights) -> dict[str, torch.Tensor]:
    """Return PyTorch's weights of all layers, by name."""
    return {
        f"gru.{kind}_l{number}{way}": reordered_gates(torch.from_numpy(values))
        for number, layer in enumerate(weights.layers)
        for way, direction in (("", 0), ("_reverse", 1))
        for kind, values in _one_way(layer, direction).items()
    }


def _one_way(layer: GruLayer, direction: int) -> dict[str, NDArray[np.float32]]:
    of_inputs, of_recurrent = np.split(layer.biases[direction].copy(), 2)
    return {
        "weight_ih": layer.inputs[direction].copy(),
        "weight_hh": layer.recurrent[direction].copy(),
        "bias_ih": of_inputs,
        "bias_hh": of_recurrent,
    }


def character_tokenizer(package: LacPackage) -> TextTokenizer:
    """Return the tokenizer: one token for each character, blanks included."""
    words = [_PAD, _UNKNOWN, *package.characters()]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.FixedLength(length=1)
    return TextTokenizer(tokenizer, vocabulary[_PAD])
