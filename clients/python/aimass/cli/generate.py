"""`aimass generate`: continue a prompt, live or as one JSON object."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Annotated

import typer

from aimass.cli.generation_flags import with_text_options
from aimass.cli.options import GENERATION_ADDRESS, Address, AsJson, Deadline, ModelName
from aimass.cli.session import chosen_model, connected
from aimass.completion import Completion, Continuation, Finish, TokenLogprob
from aimass.generation_client import GenerationClient
from aimass.generation_options import GenerationOptions
from aimass.token_stream import TokenStream

PromptArgument = Annotated[str, typer.Argument(help="Text to continue; - reads it from standard input.")]
NumSequences = Annotated[
    int | None, typer.Option(help="Continue the text this many times; needs a --temperature.")
]
Logprobs = Annotated[
    int | None,
    typer.Option(metavar="N", help="With --json: how probable each token was, and the N best at its place."),
]
PromptLogprobs = Annotated[
    bool, typer.Option("--prompt-logprobs", help="With --json: how probable each token of the prompt was.")
]


@with_text_options
def generate(
    ctx: typer.Context,
    prompt: PromptArgument,
    *,
    options: GenerationOptions,
    model: ModelName = None,
    address: Address = GENERATION_ADDRESS,
    num_sequences: NumSequences = None,
    logprobs: Logprobs = None,
    prompt_logprobs: PromptLogprobs = False,
    deadline_s: Deadline = None,
    as_json: AsJson = False,
) -> None:
    """Continue a text. Tokens appear as the model produces them; Ctrl-C cancels the call."""
    if (logprobs is not None or prompt_logprobs) and not as_json:
        flag = "--prompt-logprobs" if logprobs is None else "--logprobs"
        raise typer.BadParameter("expected together with --json, got it alone", param_hint=flag)
    wanted = replace(
        options,
        num_sequences=num_sequences,
        wants_token_ids=as_json,
        wants_logprobs=logprobs is not None,
        num_top_logprobs=logprobs or 0,
        wants_prompt_logprobs=prompt_logprobs,
    )
    text = sys.stdin.read() if prompt == "-" else prompt
    with connected(ctx, address) as connection:
        client, name = GenerationClient(connection), chosen_model(connection, model)
        if as_json or (num_sequences or 1) > 1:
            completion = client.complete(text, model=name, options=wanted, deadline_s=deadline_s)
            typer.echo(_as_json(completion) if as_json else _side_by_side(completion))
        else:
            with client.generate(text, model=name, options=wanted, deadline_s=deadline_s) as stream:
                write_live(stream)


def _as_json(completion: Completion) -> str:
    return json.dumps(completion_object(completion), ensure_ascii=False)


def _side_by_side(completion: Completion) -> str:
    texts = [completion.text, *(continuation.text for continuation in completion.further)]
    return "\n".join(f"[{number}] {text}" for number, text in enumerate(texts, 1))


def write_live(stream: TokenStream) -> None:
    """Write the text to standard output as it comes, and end the line, also when the stream fails."""
    try:
        for delta in stream:
            sys.stdout.write(delta.text)
            sys.stdout.flush()
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()


def completion_object(completion: Completion) -> dict[str, object]:
    """Return a completion as a JSON-ready object for scripts."""
    info = completion.prompt_info
    return {
        **_continuation_object(completion, completion.finish),
        "further": [_continuation_object(c, c.finish) for c in completion.further],
        "prompt_logprobs": _logprob_objects(info.prompt_logprobs),
        "model": info.model,
        "model_version": info.model_version,
        "adapter": info.adapter,
        "seed": info.seed,
        "request_id": info.request_id,
    }


def _continuation_object(text: Completion | Continuation, finish: Finish) -> dict[str, object]:
    return {
        "text": text.text,
        "token_ids": list(text.token_ids),
        "logprobs": _logprob_objects(text.logprobs),
        "finish_reason": str(finish.reason),
        "stop_string": finish.stop_string,
        "stop_token_id": finish.stop_token_id,
        "usage": asdict(finish.usage),
        "timings": asdict(finish.timings),
    }


def _logprob_objects(logprobs: Sequence[TokenLogprob]) -> list[dict[str, object]]:
    return [asdict(logprob) for logprob in logprobs]
