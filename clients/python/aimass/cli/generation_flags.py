"""The options of `aimass generate` and `aimass chat` that say how a text is written: declared once for both.

What a flag cannot hold is refused here by its name; ranges are the server's to check.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from aimass.cli.flags import Flags, flags_of, with_flags
from aimass.cli.options import (
    BEAMS,
    FORM,
    SAMPLING,
    STOPPING,
    Choice,
    JsonSchema,
    MaxNewTokens,
    MinP,
    Regex,
    RepetitionPenalty,
    Seed,
    Stop,
    Temperature,
    TopK,
    TopP,
)
from aimass.generation_options import GenerationOptions


def _sampling(help_text: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=SAMPLING, **settings)


def _stopping(help_text: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=STOPPING, **settings)


def _beams(help_text: str, *names: str) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=BEAMS)


TypicalP = Annotated[float | None, _sampling("Keep the tokens of usual surprise that reach p together.")]
FrequencyPenalty = Annotated[
    float | None, _sampling("Taken from a token's logit for each time it was written.")
]
PresencePenalty = Annotated[float | None, _sampling("Taken from a token's logit once it was written.")]
LogitBias = Annotated[
    list[str] | None,
    _sampling("Add to the logit of a token id; may be repeated.", metavar="ID=AMOUNT"),
]
AllowedTokens = Annotated[
    list[int] | None,
    _sampling("Choose among these token ids only; may be repeated.", "--allowed-token", metavar="ID"),
]
MinNewTokens = Annotated[int | None, _stopping("Do not end before this many tokens.")]
StopTokens = Annotated[
    list[int] | None, _stopping("End at this token id; may be repeated.", "--stop-token", metavar="ID")
]
IncludeStop = Annotated[bool, _stopping("Keep the text of --stop at the end.", "--include-stop")]
IgnoreEos = Annotated[bool, _stopping("Go on after the model's own end of text.", "--ignore-eos")]
TimeLimit = Annotated[
    float | None,
    _stopping("End the text after this time and keep what there is.", "--time-limit", metavar="SECONDS"),
]
Grammar = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|TEXT",
        help="A text of this grammar (Lark's syntax): the grammar, or a file with it.",
        rich_help_panel=FORM,
    ),
]
JsonObject = Annotated[bool, typer.Option("--json-object", help="Any JSON object.", rich_help_panel=FORM)]
NumBeams = Annotated[int | None, _beams("Write this many texts side by side and give the best.")]
LengthPenalty = Annotated[float | None, _beams("Above 0 favours long texts.")]
EarlyStopping = Annotated[
    bool | None,
    _beams("End as soon as there are as many texts as beams.", "--early-stopping/--no-early-stopping"),
]
NoRepeatNgramSize = Annotated[int | None, _beams("No run of this many tokens occurs twice.")]
Priority = Annotated[int | None, typer.Option(help="A higher number is served earlier.")]
Adapter = Annotated[
    str | None,
    typer.Option(help="Adapter of the model to compute with, by its name; the base model when omitted."),
]
CacheSalt = Annotated[
    str | None, typer.Option(help="Share what is computed of the prompt with this salt only.")
]
RequestId = Annotated[str | None, typer.Option(help="Name of the request in the server's logs and traces.")]


def _sampling_options(
    options: GenerationOptions,
    *,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    typical_p: TypicalP = None,
    repetition_penalty: RepetitionPenalty = None,
    frequency_penalty: FrequencyPenalty = None,
    presence_penalty: PresencePenalty = None,
    logit_bias: LogitBias = None,
    allowed_tokens: AllowedTokens = None,
    seed: Seed = None,
) -> GenerationOptions:
    return replace(
        options,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        logit_bias=dict(_bias(text) for text in logit_bias or ()),
        allowed_token_ids=tuple(allowed_tokens or ()),
        seed=seed,
    )


def _stopping_options(
    options: GenerationOptions,
    *,
    max_new_tokens: MaxNewTokens = None,
    min_new_tokens: MinNewTokens = None,
    stop: Stop = None,
    stop_tokens: StopTokens = None,
    include_stop: IncludeStop = False,
    ignore_eos: IgnoreEos = False,
    time_limit_s: TimeLimit = None,
) -> GenerationOptions:
    return replace(
        options,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        stop_strings=tuple(stop or ()),
        stop_token_ids=tuple(stop_tokens or ()),
        include_stop_string=include_stop,
        ignore_eos=ignore_eos,
        time_limit_s=time_limit_s,
    )


def _form_options(
    options: GenerationOptions,
    *,
    json_schema: JsonSchema = None,
    json_object: JsonObject = False,
    regex: Regex = None,
    choice: Choice = None,
    grammar: Grammar = None,
) -> GenerationOptions:
    return replace(
        options,
        json_schema=file_or_text(json_schema, "{", flag="--json-schema"),
        json_object=json_object or None,
        regex=regex,
        choice=choice or None,
        grammar=file_or_text(grammar, "start", flag="--grammar"),
    )


def _beam_options(
    options: GenerationOptions,
    *,
    num_beams: NumBeams = None,
    length_penalty: LengthPenalty = None,
    early_stopping: EarlyStopping = None,
    no_repeat_ngram_size: NoRepeatNgramSize = None,
) -> GenerationOptions:
    return replace(
        options,
        num_beams=num_beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        no_repeat_ngram_size=no_repeat_ngram_size,
    )


def _request_options(
    options: GenerationOptions,
    *,
    adapter: Adapter = None,
    priority: Priority = None,
    cache_salt: CacheSalt = None,
    request_id: RequestId = None,
) -> GenerationOptions:
    return replace(options, adapter=adapter, priority=priority, cache_salt=cache_salt, request_id=request_id)


_GROUPS: tuple[Callable[..., GenerationOptions], ...] = (
    _sampling_options,
    _stopping_options,
    _form_options,
    _beam_options,
    _request_options,
)
"""Each takes its flags and returns the options with what they say, in the order of the help."""


def with_text_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of all groups; it takes what they say as its argument `options`."""
    groups = [(group, _flags_of_group(group)) for group in _GROUPS]

    def options_of(said: dict[str, Any]) -> GenerationOptions:
        options = GenerationOptions()
        for group, flags in groups:
            options = group(options, **{name: said[name] for name in flags})
        return options

    every = {name: flag for _, flags in groups for name, flag in flags.items()}
    return with_flags(command, "options", every, options_of)


def _flags_of_group(group: Callable[..., GenerationOptions]) -> Flags:
    flags = flags_of(group)
    del flags["options"]
    return flags


def file_or_text(value: str | None, beginning: str, *, flag: str) -> str | None:
    """Return an option's value: itself if it begins as such texts do, else what the file it names holds."""
    if value is None or value.lstrip().startswith(beginning):
        return value
    try:
        return Path(value).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise typer.BadParameter(f"{value}: {reason}", param_hint=flag) from error


def _bias(text: str) -> tuple[int, float]:
    token_id, _, amount = text.partition("=")
    try:
        return int(token_id), float(amount)
    except ValueError as error:
        expected = f"expected a token id and an amount, such as 50256=-100, got {text!r}"
        raise typer.BadParameter(expected, param_hint="--logit-bias") from error
