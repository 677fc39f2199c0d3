"""Texts in, vectors out: has texts encoded, and finishes the vectors. Must not know the wire."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
from aimass.model.v1.model_service_pb2 import ModelLimits
from aimass_serving.errors import AimassError, InvalidField
from numpy.typing import NDArray

from aimass_encoder.bi_encoder import rerank_by_vectors, similarity
from aimass_encoder.chunking import apart_from_prompt, in_pieces, mean_of_pieces
from aimass_encoder.config import EncoderConfig
from aimass_encoder.head import PoolingHead, TokenHead
from aimass_encoder.pooling import l2_normalize
from aimass_encoder.prompted import PromptedTexts
from aimass_encoder.ranking import RerankReply, RerankRequest, SimilarityReply, SimilarityRequest
from aimass_encoder.request import EmbeddedText, EmbedOptions, EmbedReply, EmbedRequest, Truncation
from aimass_encoder.runner import HIDDEN, EncoderRunner
from aimass_encoder.spec import EmbeddingSpec
from aimass_encoder.task_engine import TextTaskEngine
from aimass_encoder.text_encoder import Encoded, EncodedTexts, TextCall, TextEncoder, good, merged
from aimass_encoder.token_vectors import (
    TextTokenVectors,
    TokenVectorsReply,
    TokenVectorsRequest,
    own_offsets,
)
from aimass_encoder.tokenization import TokenizedText, Tokenizer
from aimass_encoder.windowed_texts import WindowedText, WindowedTexts, encode_windows
from aimass_encoder.windows import Window

Vector = NDArray[np.float32]  # [hidden_size]


class EncoderEngine(TextTaskEngine):
    """One embedding model."""

    def __init__(
        self,
        runner: EncoderRunner,
        tokenizer: Tokenizer,
        spec: EmbeddingSpec,
        *,
        model: str,
        config: EncoderConfig,
        permit: AbstractContextManager[None],
    ) -> None:
        super().__init__(TextEncoder(runner, tokenizer, model=model, config=config, permit=permit))
        self._spec = spec
        self._head = PoolingHead(spec.pooling, model)
        self._tokens_head = TokenHead((HIDDEN,), model)

    @property
    def limits(self) -> ModelLimits:
        """What a request must stay within."""
        limits = ModelLimits(dimensions=self._spec.hidden_size)
        limits.MergeFrom(super().limits)
        return limits

    @property
    def stream_window(self) -> int:
        """Texts of one stream that may be in work at once."""
        return self._encoder.config.stream_window

    def check_options(self, options: EmbedOptions) -> None:
        """Raise `InvalidField` when this model cannot make such vectors."""
        self._check_dimensions(options)
        self._prompt(options.prompt_name, "options.prompt_name")

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """Return one result for each text, in order; a bad text has an error in its place.

        Vectors are the same, up to rounding, whatever else runs at the time. Raises `InvalidField` for
        options this model does not have or too many texts, `Overloaded`, `DeadlineExceeded`, `Draining`.
        """
        texts = PromptedTexts(
            request.texts,
            [request.options.prompt_name] * len(request.texts),
            [request.field_of(index) for index in range(len(request.texts))],
            list_field="texts",
            deadline_s=request.deadline_s,
        )
        with self._encoder.measured("embeddings"):
            return await self.embed_prompted(texts, request.options)

    async def similarity(self, request: SimilarityRequest) -> SimilarityReply:
        """Compare each query with each document. Raises as `embed` does."""
        with self._encoder.measured("similarity"):
            return await similarity(self, request)

    async def rerank(self, request: RerankRequest) -> RerankReply:
        """Return the documents by the cosine with the query. Raises as `embed` does, or the query's error."""
        with self._encoder.measured("rerank"):
            return await rerank_by_vectors(self, request)

    async def embed_prompted(self, texts: PromptedTexts, options: EmbedOptions) -> EmbedReply:
        """Return one result for each text, in order, as `embed` does; the options' own prompt is not read."""
        self._check_dimensions(options)
        call = self._call(texts, options)
        encoded: EncodedTexts[Vector] | WindowedTexts[Vector]
        if options.chunk_overlap is None:
            encoded = await self._encoder.encode(call, self._head)
        else:
            encoded = await self._encode_pieces(call, options.chunk_overlap)
        return EmbedReply(
            results=self._finish(encoded.results, options),
            dimensions=options.dimensions or self._spec.hidden_size,
            timings=encoded.timings,
        )

    async def embed_tokens(self, request: TokenVectorsRequest) -> TokenVectorsReply:
        """Return the vectors of each text's tokens, in order; a bad text has an error in its place.

        Raises as `embed` does, and `InvalidField` for texts with too many tokens for one reply.
        """
        options, num_texts = request.options, len(request.texts)
        prompt = self._prompt(options.prompt_name, "options.prompt_name")
        self._check_dimensions(options)
        call = TextCall(
            request.texts,
            lambda index: f"texts[{index}]",
            "texts",
            truncation=options.truncation,
            deadline_s=request.deadline_s,
            prefixes=[prompt] * num_texts,
            needs_spans=True,
            max_total_tokens=request.max_tokens(self._spec.hidden_size),
        )
        with self._encoder.measured("embed_tokens"):
            encoded = await self._encoder.encode(call, self._tokens_head)
            return TokenVectorsReply(
                results=[self._token_vectors(item, request, prompt) for item in encoded.results],
                dimensions=options.dimensions or self._spec.hidden_size,
                num_tokens=encoded.num_tokens,
                timings=encoded.timings,
            )

    def _check_dimensions(self, options: EmbedOptions) -> None:
        if options.dimensions is not None and options.dimensions > self._spec.hidden_size:
            raise InvalidField(
                "options.dimensions",
                expected=f"a number from 1 to {self._spec.hidden_size}",
                got=options.dimensions,
            )

    def _prompt(self, name: str, field: str) -> str:
        """Return the text of a prompt, empty for no name. Raises `InvalidField`."""
        if name and name not in self._spec.prompts:
            names = ", ".join(sorted(self._spec.prompts)) or "no name: this model has no prompts"
            raise InvalidField(field, expected=f"one of: {names}", got=name)
        return self._spec.prompts[name] if name else ""

    def _call(self, texts: PromptedTexts, options: EmbedOptions) -> TextCall:
        is_split = options.chunk_overlap is not None
        names = texts.prompt_names
        return TextCall(
            texts.texts,
            lambda index: texts.fields[index],
            texts.list_field,
            truncation=Truncation.WINDOWS if is_split else options.truncation,
            deadline_s=texts.deadline_s,
            prefixes=[self._prompt(name, texts.prompt_field(i)) for i, name in enumerate(names)],
            needs_spans=is_split,
        )

    async def _encode_pieces(self, call: TextCall, overlap: int) -> WindowedTexts[Vector]:
        def cut(index: int, text: TokenizedText) -> Sequence[Window] | AimassError:
            return in_pieces(
                apart_from_prompt(text, call.prefixes[index]),
                max_tokens=self._encoder.max_tokens,
                overlap=overlap,
                field=call.field_of(index),
            )

        return await encode_windows(self._encoder, call, cut, self._head)

    def _finish(
        self, results: Sequence[Encoded[Vector] | WindowedText[Vector] | AimassError], options: EmbedOptions
    ) -> Sequence[EmbeddedText | AimassError]:
        encoded: list[Encoded[Vector] | WindowedText[Vector]] = good(results)
        vectors = self._shaped([_whole_vector(item) for item in encoded], options)
        return merged(results, [_embedded(v, item) for v, item in zip(vectors, encoded, strict=True)])

    def _shaped(self, vectors: Sequence[Vector], options: EmbedOptions) -> Sequence[Vector]:
        """Cut vectors to the asked-for dimensions, then scale them."""
        if not vectors:
            return []
        cut = np.stack(vectors)[:, : options.dimensions]  # [texts, dimensions]
        wants_unit = self._spec.normalize if options.normalize is None else options.normalize
        return list(l2_normalize(cut) if wants_unit else cut)

    def _token_vectors(
        self,
        item: Encoded[NDArray[np.float32]] | AimassError,
        request: TokenVectorsRequest,
        prompt: str,
    ) -> TextTokenVectors | AimassError:
        if isinstance(item, AimassError):
            return item
        offsets, is_own = own_offsets(item.text, prompt)
        kept = is_own if request.text_only else slice(None)
        vectors = item.reading[kept, : request.options.dimensions]  # [tokens, dimensions]
        return TextTokenVectors(
            vectors if request.options.normalize is False else l2_normalize(vectors),
            offsets[kept],
            item.text.token_ids[kept],
            len(item.text.token_ids),
            item.text.num_truncated_tokens,
        )


def _whole_vector(item: Encoded[Vector] | WindowedText[Vector]) -> Vector:
    return mean_of_pieces(item.windows, item.readings) if isinstance(item, WindowedText) else item.reading


def _embedded(vector: Vector, item: Encoded[Vector] | WindowedText[Vector]) -> EmbeddedText:
    if isinstance(item, WindowedText):
        return EmbeddedText(vector, item.num_tokens, 0, num_chunks=len(item.windows))
    return EmbeddedText(vector, len(item.text.token_ids), item.text.num_truncated_tokens)
