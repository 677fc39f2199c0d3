"""The same weights in the form each peer reads, made once and kept in the user's cache.

Conversion is never timed. Knows no benchmark.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from aimass_exporters.decoders.causal_lm import load_causal_lm
from aimass_exporters.progress import SilentProgress
from aimass_exporters.sources.cache import cache_folder
from aimass_exporters.sources.source import Source, resolve_source


def causal_lm_folder(model: str) -> Path:
    """Return a Hugging Face folder of a causal language model in float32, tokenizer included."""
    source = resolve_source(model, SilentProgress())
    return _made_once(source, "transformers", lambda folder: _save_causal_lm(source, folder))


def optimum_folder(model: str) -> Path:
    """Return optimum's own ONNX export of the same model, with its key-value cache, float32."""
    return _made_once(
        resolve_source(model, SilentProgress()), "optimum", lambda folder: _export(model, folder)
    )


def ctranslate2_folder(model: str) -> Path:
    """Return CTranslate2's conversion of the same model, float32."""
    return _made_once(
        resolve_source(model, SilentProgress()), "ctranslate2", lambda folder: _convert(model, folder)
    )


def sentence_transformers_folder(model: str) -> Path:
    """Return the folder sentence-transformers reads: the source's own."""
    return resolve_source(model, SilentProgress()).path


def _made_once(source: Source, form: str, make: Callable[[Path], None]) -> Path:
    target = cache_folder() / "bench" / source.weights_id()[:16] / form
    if not target.is_dir():
        print(f"preparing {source.origin} for {form} (once)", flush=True)
        scratch = target.with_name(f".{form}.part")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        make(scratch)
        scratch.rename(target)
    return target


def _save_causal_lm(source: Source, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    loaded = load_causal_lm(source)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=loaded.text.tokenizer, padding_side="left", **dict(loaded.text.special_tokens)
    )
    tokenizer.pad_token_id = loaded.text.pad_token_id
    loaded.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _export(model: str, folder: Path) -> None:
    from optimum.exporters.onnx import main_export

    main_export(
        str(causal_lm_folder(model)), output=folder, task="text-generation-with-past", do_validation=False
    )


def _convert(model: str, folder: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(causal_lm_folder(model))).convert(
        str(folder), quantization="float32", force=True
    )
