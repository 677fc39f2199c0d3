"""T5, BART and Marian with random weights: our engine and our beams against `generate` of transformers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aimass_decoding.beam_batch import BeamBatch
from aimass_decoding.beam_search import BeamOptions
from aimass_decoding.config import EngineConfig
from aimass_decoding.cross_attention import SourceEncoder, SourceMemory
from aimass_decoding.engine import DecodingEngine
from aimass_decoding.golden import encoder_feeds
from aimass_decoding.request import SequenceRequest
from aimass_decoding.runner import DecoderRunner, geometry_of
from aimass_exporters.seq2seq.text2text_parity import encode_batch
from aimass_exporters.testing import cached_export, tiny_tokenizer
from aimass_serving.bundle import Bundle, read_bundle
from aimass_serving.compute import ComputePermit
from aimass_serving.session import Device, Session, SessionConfig, open_session
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    MarianConfig,
    MarianMTModel,
    T5Config,
    T5ForConditionalGeneration,
)

CPU = SessionConfig(device=Device.CPU, allow_spinning=False)
NEW_TOKENS = 12
FAMILIES = ("t5", "bart", "marian")
_IDS = {"pad_token_id": 0, "eos_token_id": 2}


def random_model(family: str) -> Any:
    """Return a two-layer model whose texts end at times: the end of a text is made likely."""
    torch.manual_seed(7)
    if family == "t5":
        model: Any = T5ForConditionalGeneration(
            T5Config(
                vocab_size=512,
                d_model=64,
                d_kv=16,
                d_ff=96,
                num_layers=2,
                num_heads=4,
                n_positions=128,
                decoder_start_token_id=0,
                relative_attention_num_buckets=8,
                relative_attention_max_distance=20,
                feed_forward_proj="gated-gelu",
                initializer_factor=1.0,
                **_IDS,
            )
        )
        with torch.no_grad():
            for block in model.decoder.block:  # else tied embeddings repeat the token before
                block.layer[1].EncDecAttention.o.weight *= 30
                block.layer[2].DenseReluDense.wo.weight *= 30
            model.shared.weight[2] *= 1.5
    else:
        sizes = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 128}
        sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
        sizes |= {"encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "vocab_size": 512}
        families: Any = {
            "bart": (BartConfig, BartForConditionalGeneration),
            "marian": (MarianConfig, MarianMTModel),
        }
        config, kind = families[family]
        start = 2 if family == "bart" else 0
        model = kind(config(**sizes, **_IDS, init_std=0.2, decoder_start_token_id=start, bos_token_id=1))
        with torch.no_grad():
            model.final_logits_bias[:, 2] = 4.0
    forced = {"forced_bos_token_id": 1} if family == "bart" else {}
    banned = {"bad_words_ids": [[0]]} if family == "marian" else {}
    model.generation_config = GenerationConfig(
        decoder_start_token_id=model.config.decoder_start_token_id, **_IDS, **forced, **banned
    )
    for name in ("forced_eos_token_id", "forced_bos_token_id", "num_beams"):
        if hasattr(model.config, name):
            setattr(model.config, name, None if name != "num_beams" else 1)
    return model.eval()


@dataclass(frozen=True)
class Served:
    bundle: Bundle
    encoder: SourceEncoder
    decoder: Session
    model: Any
    sources: list[list[int]]

    @property
    def start_ids(self) -> list[int]:
        return list(self.bundle.manifest.text2text.decoder_start_ids)

    def memories(self) -> list[SourceMemory]:
        return encode_batch(self.encoder, self.sources)

    def generate(self, source: list[int], **options: Any) -> list[int]:
        """Return what transformers writes, without what it began with and the token that ended it."""
        with torch.inference_mode():
            ids = self.model.generate(
                torch.tensor([source]), max_new_tokens=NEW_TOKENS + len(self.start_ids) - 1, **options
            )[0].tolist()
        text: list[int] = ids[len(self.start_ids) :]
        return text[: text.index(2)] if 2 in text else text


@pytest.fixture(scope="module", params=FAMILIES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    family = request.param
    folder: Path = tmp_path_factory.mktemp(family)
    model = random_model(family)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    store = cached_export(folder, name=f"tiny-{family}")
    bundle = read_bundle(store / f"tiny-{family}" / "1")
    cross = geometry_of(bundle.manifest.decoder).cross
    assert cross is not None
    generator = np.random.default_rng(3)
    sources = [generator.integers(3, 512, count).tolist() for count in (9, 3, 17, 6)]
    encoder = SourceEncoder(open_session(bundle.graph("encoder"), CPU), cross)
    return Served(bundle, encoder, open_session(bundle.graph("decoder"), CPU), model, sources)


async def test_ragged_sources_decoded_together_give_the_greedy_texts_of_generate(served: Served) -> None:
    spec = served.bundle.manifest.decoder
    engine = DecodingEngine(
        served.decoder,
        geometry_of(spec),
        EngineConfig(max_slots=3, max_len=40),
        model=served.bundle.ref,
        permit=ComputePermit(),
    )
    golden = served.bundle.golden()
    engine.replay_golden(golden, memory=served.encoder.encode(encoder_feeds(golden))[0])
    engine.start()

    async def write(memory: SourceMemory) -> list[int]:
        request = SequenceRequest(
            "r",
            np.array(served.start_ids),
            NEW_TOKENS,
            eos_token_ids=frozenset(spec.eos_token_ids),
            memory=memory,
        )
        return [token_id async for delta in engine.generate(request) for token_id in delta.token_ids]

    try:
        texts = await asyncio.gather(*(write(memory) for memory in served.memories()))
    finally:
        engine.close()
    assert texts == [served.generate(source) for source in served.sources]
    assert len({tuple(text) for text in texts}) > 1


@pytest.mark.parametrize(
    ("num_beams", "length_penalty", "early_stopping"),
    [(2, 1.0, False), (4, 1.0, False), (4, 0.4, True), (4, 2.0, False)],
)
def test_beams_give_the_texts_of_generate(
    served: Served, num_beams: int, length_penalty: float, early_stopping: bool
) -> None:
    spec = served.bundle.manifest.decoder
    runner = DecoderRunner(served.decoder, geometry_of(spec), max_slots=16, max_len=40)
    batch = BeamBatch(runner, max_slots=16, max_len=40)
    options = BeamOptions(
        num_beams,
        NEW_TOKENS,
        frozenset(spec.eos_token_ids),
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        num_counted_prompt_tokens=len(served.start_ids) - 1,
    )
    searches = [batch.join(np.array(served.start_ids), options, memory=m) for m in served.memories()]
    batch.run()
    got = [list(search.hypotheses[0].token_ids) for search in searches]
    expected = [
        served.generate(
            source, num_beams=num_beams, length_penalty=length_penalty, early_stopping=early_stopping
        )
        for source in served.sources
    ]
    assert got == expected
