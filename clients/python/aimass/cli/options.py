"""Options that several commands share. Help texts live here once; ranges are the server's to check."""

from __future__ import annotations

from typing import Annotated

import typer

from aimass.embedding_options import Truncation

GENERATION_ADDRESS = "localhost:50051"
ENCODER_ADDRESS = "localhost:50052"
SPEECH_ADDRESS = "localhost:50053"

SAMPLING = "How the next token is chosen"
STOPPING = "When the text ends"
FORM = "The form of the text: one of these"
BEAMS = "Search with beams"

Address = Annotated[str, typer.Option(help="host:port of the service.")]
ModelName = Annotated[
    str | None, typer.Option(help="Name or name@version. Default: the only model that is served there.")
]
Deadline = Annotated[
    float | None, typer.Option("--deadline", metavar="SECONDS", min=0.001, help="Give up after this time.")
]
Texts = Annotated[list[str], typer.Argument(metavar="TEXT...", help="One text or more.")]
Labels = Annotated[list[str] | None, typer.Option("--label", help="Only this label; may be repeated.")]
LabelThreshold = Annotated[float | None, typer.Option(help="Least score of a label.")]
Dimensions = Annotated[int | None, typer.Option(help="Keep this many leading dimensions (Matryoshka).")]
Truncate = Annotated[Truncation, typer.Option(help="Which end of a long text to keep, or none: refuse it.")]
ChunkOverlap = Annotated[
    int | None,
    typer.Option(
        metavar="TOKENS",
        help="Read long texts in pieces that share this many tokens, instead of cutting them.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object, and nothing else, on standard output.")
]
Temperature = Annotated[
    float | None,
    typer.Option(help="0 takes the most probable token, above 0 draws.", rich_help_panel=SAMPLING),
]
TopK = Annotated[int | None, typer.Option(help="Keep the k most probable tokens.", rich_help_panel=SAMPLING)]
TopP = Annotated[
    float | None,
    typer.Option(help="Keep the smallest set of tokens that reaches p.", rich_help_panel=SAMPLING),
]
MinP = Annotated[
    float | None,
    typer.Option(help="Drop tokens below this share of the best one.", rich_help_panel=SAMPLING),
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Above 1 makes repeats less probable.", rich_help_panel=SAMPLING)
]
Seed = Annotated[int | None, typer.Option(help="Makes the draw repeatable.", rich_help_panel=SAMPLING)]
MaxNewTokens = Annotated[int | None, typer.Option(help="Most tokens to produce.", rich_help_panel=STOPPING)]
Stop = Annotated[
    list[str] | None,
    typer.Option(help="End before this text; may be repeated.", rich_help_panel=STOPPING),
]
JsonSchema = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|TEXT",
        help="A JSON document that satisfies this schema: JSON, or a file with it.",
        rich_help_panel=FORM,
    ),
]
Regex = Annotated[
    str | None, typer.Option(help="A text that this regular expression matches.", rich_help_panel=FORM)
]
Choice = Annotated[
    list[str] | None,
    typer.Option(help="This text, or another --choice; to be repeated.", rich_help_panel=FORM),
]
