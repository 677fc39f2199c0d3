"""Options that several commands share. Help texts live here once; ranges are the server's to check."""

from __future__ import annotations

from typing import Annotated

import typer

GENERATION_ADDRESS = "localhost:50051"
ENCODER_ADDRESS = "localhost:50052"
SPEECH_ADDRESS = "localhost:50053"

_SAMPLING = "How the next token is chosen"
_STOPPING = "When the text ends"
_FORM = "The form of the text: one of these"

Address = Annotated[str, typer.Option(help="host:port of the service.")]
ModelName = Annotated[
    str | None, typer.Option(help="Name or name@version. Default: the only model that is served there.")
]
Deadline = Annotated[
    float | None, typer.Option("--deadline", metavar="SECONDS", min=0.001, help="Give up after this time.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object, and nothing else, on standard output.")
]
Temperature = Annotated[
    float | None,
    typer.Option(help="0 takes the most probable token, above 0 draws.", rich_help_panel=_SAMPLING),
]
TopK = Annotated[int | None, typer.Option(help="Keep the k most probable tokens.", rich_help_panel=_SAMPLING)]
TopP = Annotated[
    float | None,
    typer.Option(help="Keep the smallest set of tokens that reaches p.", rich_help_panel=_SAMPLING),
]
MinP = Annotated[
    float | None,
    typer.Option(help="Drop tokens below this share of the best one.", rich_help_panel=_SAMPLING),
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Above 1 makes repeats less probable.", rich_help_panel=_SAMPLING)
]
Seed = Annotated[int | None, typer.Option(help="Makes the draw repeatable.", rich_help_panel=_SAMPLING)]
MaxNewTokens = Annotated[int | None, typer.Option(help="Most tokens to produce.", rich_help_panel=_STOPPING)]
Stop = Annotated[
    list[str] | None,
    typer.Option(help="End before this text; may be repeated.", rich_help_panel=_STOPPING),
]
JsonSchema = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|TEXT",
        help="A JSON document that satisfies this schema: JSON, or a file with it.",
        rich_help_panel=_FORM,
    ),
]
Regex = Annotated[
    str | None, typer.Option(help="A text that this regular expression matches.", rich_help_panel=_FORM)
]
Choice = Annotated[
    list[str] | None,
    typer.Option(help="This text, or another --choice; to be repeated.", rich_help_panel=_FORM),
]
