"""Documents in the order of what a cross-encoder gives for each with the query. Must not know the wire."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from aimass_serving.errors import AimassError, InvalidField
from numpy.typing import NDArray

from aimass_encoder.chunking import in_pieces
from aimass_encoder.head import Head
from aimass_encoder.labels import sigmoid
from aimass_encoder.ranking import (
    RankingMethod,
    ReadText,
    RelevanceScore,
    RerankReply,
    RerankRequest,
    best_first,
)
from aimass_encoder.request import Truncation
from aimass_encoder.text_encoder import Encoded, EncodedTexts, TextCall, TextEncoder
from aimass_encoder.tokenization import TokenizedText
from aimass_encoder.windowed_texts import WindowedText, WindowedTexts, encode_windows
from aimass_encoder.windows import Window

Logits = NDArray[np.float32]  # [1]
_METHOD = RankingMethod.CROSS_ENCODER


async def rerank_pairs(encoder: TextEncoder, head: Head[Logits], request: RerankRequest) -> RerankReply:
    """Return the documents by the one logit that the graph gives for the query and each of them.

    A document in pieces counts as its best piece. Raises `InvalidField` for options that cross-encoders do
    not have or too many documents, `Overloaded`, `DeadlineExceeded`, `Draining`.
    """
    score = request.score_by(_METHOD)
    _refuse_prompts(request)
    if len(request.query) > encoder.config.max_text_chars:
        expected = f"at most {encoder.config.max_text_chars} characters"
        raise InvalidField("query", expected=expected, got=len(request.query))
    encoded = await _encode(encoder, head, request)
    scored = [_scored(result, score) for result in encoded.results]
    ranked, errors = best_first(scored, request.top_n)
    return RerankReply(ranked, errors, _METHOD, score, encoded.num_tokens, encoded.timings)


def _refuse_prompts(request: RerankRequest) -> None:
    for field, name in (("query", request.query_prompt_name), ("document", request.document_prompt_name)):
        if name:
            expected = "no name: a cross-encoder has no prompts"
            raise InvalidField(f"options.{field}_prompt_name", expected=expected, got=name)


async def _encode(
    encoder: TextEncoder, head: Head[Logits], request: RerankRequest
) -> EncodedTexts[Logits] | WindowedTexts[Logits]:
    overlap = request.chunk_overlap
    call = TextCall(
        [(request.query, document) for document in request.documents],
        field_of=lambda index: f"documents[{index}]",
        list_field="documents",
        part_fields=("", ""),  # the query has been looked at
        truncation=request.truncation if overlap is None else Truncation.WINDOWS,
        deadline_s=request.deadline_s,
        needs_spans=overlap is not None,
    )
    if overlap is None:
        return await encoder.encode(call, head)

    def cut(index: int, text: TokenizedText) -> Sequence[Window] | AimassError:
        field, longest = call.field_of(index), encoder.max_tokens
        return in_pieces(text, max_tokens=longest, overlap=overlap, field=field, part=1)

    return await encode_windows(encoder, call, cut, head)


def _scored(
    result: Encoded[Logits] | WindowedText[Logits] | AimassError, score: RelevanceScore
) -> tuple[float, ReadText] | AimassError:
    if isinstance(result, AimassError):
        return result
    if isinstance(result, WindowedText):
        logit: Logits = np.max(result.readings, axis=0)
        read = ReadText(result.num_tokens, 0, len(result.windows))
    else:
        logit = result.reading
        read = ReadText(len(result.text.token_ids), result.text.num_truncated_tokens, 1)
    values = sigmoid(logit) if score is RelevanceScore.SIGMOID else logit
    return float(values[0]), read
