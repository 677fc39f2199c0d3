"""`aimass generate`: continue a prompt, live or as one JSON object."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from aimass.cli.options import (
    GENERATION_ADDRESS,
    Address,
    AsJson,
    Choice,
    Deadline,
    JsonSchema,
    MaxNewTokens,
    MinP,
    ModelName,
    Regex,
    RepetitionPenalty,
    Seed,
    Stop,
    Temperature,
    TopK,
    TopP,
)
from aimass.cli.session import chosen_model, connected
from aimass.completion import Completion
from aimass.generation_client import GenerationClient
from aimass.generation_options import GenerationOptions
from aimass.token_stream import TokenStream

PromptArgument = Annotated[str, typer.Argument(help="Text to continue; - reads it from standard input.")]


def generate(
    ctx: typer.Context,
    prompt: PromptArgument,
    *,
    model: ModelName = None,
    address: Address = GENERATION_ADDRESS,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    stop: Stop = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    choice: Choice = None,
    deadline_s: Deadline = None,
    as_json: AsJson = False,
) -> None:
    """Continue a text. Tokens appear as the model produces them; Ctrl-C cancels the call."""
    options = GenerationOptions(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        max_new_tokens=max_new_tokens,
        stop_strings=tuple(stop or ()),
        json_schema=schema_text(json_schema),
        regex=regex,
        choice=choice or None,
    )
    text = sys.stdin.read() if prompt == "-" else prompt
    with connected(ctx, address) as connection:
        client, name = GenerationClient(connection), chosen_model(connection, model)
        if as_json:
            wanted = replace(options, wants_token_ids=True)
            completion = client.complete(text, model=name, options=wanted, deadline_s=deadline_s)
            typer.echo(json.dumps(completion_object(completion), ensure_ascii=False))
        else:
            with client.generate(text, model=name, options=options, deadline_s=deadline_s) as stream:
                write_live(stream)


def schema_text(file_or_text: str | None) -> str | None:
    """Return the JSON schema of an option's value: itself if it is JSON by its beginning, else a file's."""
    if file_or_text is None or file_or_text.lstrip().startswith("{"):
        return file_or_text
    try:
        return Path(file_or_text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise typer.BadParameter(f"{file_or_text}: {reason}", param_hint="--json-schema") from error


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
    finish, info = completion.finish, completion.prompt_info
    return {
        "text": completion.text,
        "token_ids": list(completion.token_ids),
        "finish_reason": str(finish.reason),
        "stop_string": finish.stop_string,
        "stop_token_id": finish.stop_token_id,
        "usage": asdict(finish.usage),
        "timings": asdict(finish.timings),
        "model": info.model,
        "model_version": info.model_version,
        "seed": info.seed,
        "request_id": info.request_id,
    }
