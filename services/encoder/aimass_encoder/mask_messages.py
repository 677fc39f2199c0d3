"""Filled masks as they travel: between messages and the engine's own words."""

from __future__ import annotations

from aimass.classification.v1 import fill_mask_pb2 as pb
from aimass_serving.errors import AimassError
from aimass_serving.registry import ServedModel

from aimass_encoder.masks import DEFAULT_TOP_K, FilledMask, FilledText, FillOptions, FillReply, FillRequest
from aimass_encoder.messages import item_error_pb, reply_fields
from aimass_encoder.task_engine import TaskEngine


def fill_request(request: pb.FillMaskRequest, *, deadline_s: float | None) -> FillRequest:
    """Return the engine's request. Raises `InvalidField`."""
    options = request.options
    top_k = options.top_k if options.HasField("top_k") else DEFAULT_TOP_K
    return FillRequest(request.texts, FillOptions(top_k, tuple(options.targets)), deadline_s=deadline_s)


def fill_response(reply: FillReply, served: ServedModel[TaskEngine]) -> pb.FillMaskResponse:
    """Return the reply as it travels."""
    return pb.FillMaskResponse(
        results=[_result(result) for result in reply.results],
        mask_token=reply.mask_token,
        **reply_fields(reply, served),
    )


def _result(result: FilledText | AimassError) -> pb.FillMaskResult:
    if isinstance(result, AimassError):
        return pb.FillMaskResult(error=item_error_pb(result))
    masks = [_mask(mask) for mask in result.masks]
    return pb.FillMaskResult(
        filled=pb.FilledText(masks=masks, tokens=result.num_tokens, windows=result.num_windows)
    )


def _mask(mask: FilledMask) -> pb.FilledMask:
    words = [pb.MaskWord(text=w.text, token=w.token, token_id=w.token_id, score=w.score) for w in mask.words]
    return pb.FilledMask(start=mask.start, end=mask.end, words=words)
