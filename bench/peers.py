"""The same weights in the form each peer reads, made once and kept in the user's cache.

Conversion is never timed. Knows no benchmark. Each function takes what the exporter reads: a name of the
catalogue, or a folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from aimass_exporters.decoders.causal_lm import load_causal_lm
from aimass_exporters.progress import SilentProgress
from aimass_exporters.sources.cache import cache_folder
from aimass_exporters.sources.source import Source, resolve_source
from tokenizers import Tokenizer

from bench.environment import Environment, run_in

_FOREIGN = Path(__file__).with_name("foreign")
GENAI = Environment("onnxruntime-genai", _FOREIGN / "genai.txt", ("onnxruntime-genai", "onnxruntime"))
INFINITY = Environment(
    "infinity",
    _FOREIGN / "infinity.txt",
    ("infinity_emb", "onnxruntime", "torch", "sentence-transformers", "numpy"),
)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json")


def causal_lm_folder(source: str) -> Path:
    """Return a Hugging Face folder of a causal language model in float32, tokenizer included."""
    return _made_once(source, "transformers", _save_causal_lm)


def optimum_folder(source: str) -> Path:
    """Return optimum's own ONNX export of the same model, with its key-value cache, float32."""
    return _made_once(source, "optimum", lambda _, folder: _export_causal_lm(source, folder))


def ctranslate2_folder(source: str) -> Path:
    """Return CTranslate2's conversion of a causal language model, float32; int8 is made when it is loaded."""
    return _made_once(source, "ctranslate2", lambda _, folder: _convert(causal_lm_folder(source), folder))


def genai_folder(source: str, precision: str) -> Path:
    """Return what the model builder of onnxruntime-genai makes of a causal language model, for the CPU.

    Raises `PeerUnavailable` when it cannot be installed, or does not know the family.
    """
    python = GENAI.python()
    build = ["-m", "onnxruntime_genai.models.builder", "-e", "cpu", "-p", precision]
    weights = causal_lm_folder(source)
    (family,) = json.loads((weights / "config.json").read_text())["architectures"]

    def make(_: Source, folder: Path) -> None:
        with TemporaryDirectory() as cache:
            arguments = [*build, "-i", str(weights), "-o", str(folder), "-c", cache]
            run_in(python, arguments, failure=f"the model builder of {GENAI.name} refuses {family}")

    return _made_once(source, f"{GENAI.key}-{precision}", make)


def sentence_transformers_folder(source: str) -> Path:
    """Return the folder sentence-transformers reads: the source's own."""
    return resolve_source(source, SilentProgress()).path


def ctranslate2_encoder_folder(source: str) -> Path:
    """Return CTranslate2's conversion of a sentence encoder, float32; int8 is made when it is loaded."""
    return _made_once(source, "ctranslate2", lambda model, folder: _convert(model.path, folder))


def onnx_encoder_folder(source: str) -> Path:
    """Return optimum's plain ONNX export of a sentence encoder with its tokenizer, as fastembed reads it."""
    return _made_once(source, "onnx", _export_encoder)


def infinity_onnx_folder(source: str, *, max_tokens: int) -> Path:
    """Return the same export as infinity reads it: it cuts texts where the config's positions end."""

    def make(_: Source, folder: Path) -> None:
        shutil.copytree(onnx_encoder_folder(source), folder, dirs_exist_ok=True)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": max_tokens}))

    return _made_once(source, f"infinity-{max_tokens}", make)


def _made_once(name: str, form: str, make: Callable[[Source, Path], None]) -> Path:
    source = resolve_source(name, SilentProgress())
    target = cache_folder() / "bench" / source.weights_id()[:16] / form
    if not target.is_dir():
        print(f"preparing {source.origin} for {form} (once)", flush=True)
        scratch = target.with_name(f".{form}.part")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        make(source, scratch)
        scratch.rename(target)
    return target


def _save_causal_lm(source: Source, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    loaded = load_causal_lm(source)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_with_every_token(loaded.text.tokenizer, loaded.model.config.vocab_size),
        padding_side="left",
        **dict(loaded.text.special_tokens),
    )
    tokenizer.pad_token_id = loaded.text.pad_token_id
    tokenizer.unk_token = tokenizer.unk_token or tokenizer.pad_token  # CTranslate2 loads no model without one
    loaded.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _with_every_token(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """Return the tokeniser with a name for every id of the model: CTranslate2 asks for one.

    Names without merges: no text is ever tokenised to them.
    """
    if tokenizer.get_vocab_size() >= vocab_size:
        return tokenizer
    spec = json.loads(tokenizer.to_str())
    known = set(spec["model"]["vocab"].values())
    spec["model"]["vocab"] |= {f"<unused-{i}>": i for i in range(vocab_size) if i not in known}
    return Tokenizer.from_str(json.dumps(spec))


def _export_causal_lm(source: str, folder: Path) -> None:
    from optimum.exporters.onnx import main_export

    main_export(
        str(causal_lm_folder(source)), output=folder, task="text-generation-with-past", do_validation=False
    )


def _export_encoder(source: Source, folder: Path) -> None:
    from optimum.exporters.onnx import main_export

    main_export(
        str(source.path),
        output=folder,
        task="feature-extraction",
        library_name="transformers",
        do_validation=False,
    )
    for name in _TOKENIZER_FILES:
        if (source.path / name).is_file() and not (folder / name).is_file():
            shutil.copy(source.path / name, folder / name)


def _convert(model: Path, folder: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(model)).convert(str(folder), quantization="float32", force=True)
