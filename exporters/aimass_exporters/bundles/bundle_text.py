"""Writes the text side of a bundle: `tokenizer.json` and the chat template."""

from __future__ import annotations

from pathlib import Path

from aimass.model.v1.manifest_pb2 import TokenizerSpec

from aimass_exporters.bundles.text_tokenizer import TextTokenizer

TOKENIZER_FILE, CHAT_TEMPLATE_FILE = "tokenizer.json", "chat_template.jinja"


def write_tokenizer(text: TextTokenizer, draft: Path) -> TokenizerSpec:
    """Write the tokenizer and its chat template; return what the manifest says of them."""
    text.tokenizer.save(str(draft / TOKENIZER_FILE))
    spec = TokenizerSpec(
        file=TOKENIZER_FILE, pad_token_id=text.pad_token_id, special_tokens=dict(text.special_tokens)
    )
    if text.chat_template:
        (draft / CHAT_TEMPLATE_FILE).write_text(text.chat_template, encoding="utf-8")
        spec.chat_template_file = CHAT_TEMPLATE_FILE
    return spec
