"""`aimass answer`: the piece of a text that answers a question, as a table or as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from aimass.classification_client import ClassificationClient
from aimass.cli.answers import answers_object, report_errors
from aimass.cli.encoder_call import EncoderCall, with_encoder_call
from aimass.embeddings import ItemError
from aimass.question_answers import AnsweredQuestions, AnswerOptions

Question = Annotated[str, typer.Argument(help="The question.")]
Context = Annotated[str | None, typer.Option(help="The text to find the answer in.")]
ContextFile = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="A UTF-8 file with that text.")
]
TopK = Annotated[int | None, typer.Option(help="At most this many answers.")]
MaxTokens = Annotated[int | None, typer.Option("--max-answer-tokens", help="Longest answer.")]
AllowNone = Annotated[
    bool, typer.Option("--allow-no-answer", help="For models that were trained to say that there is none.")
]


@with_encoder_call
def answer(
    question: Question,
    *,
    context: Context = None,
    context_file: ContextFile = None,
    top_k: TopK = None,
    max_answer_tokens: MaxTokens = None,
    allow_no_answer: AllowNone = False,
    call: EncoderCall,
) -> None:
    """Find the answer to a question in a text."""
    if (context is None) == (context_file is None):
        raise typer.BadParameter("expected --context or --context-file, one of them")
    text = context if context is not None else _read(context_file)
    options = AnswerOptions(top_k=top_k, max_answer_tokens=max_answer_tokens, allow_no_answer=allow_no_answer)
    with call.client(ClassificationClient) as (client, model):
        answered = client.answer([(question, text)], model=model, options=options, deadline_s=call.deadline_s)
    if call.as_json:
        typer.echo(json.dumps(answers_object(answered, asdict)))
    else:
        Console().print(_table(answered))
    report_errors(answered.results, "inputs")


def _read(file: Path | None) -> str:
    assert file is not None, "one of the two is given"
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise typer.BadParameter(
            f"expected UTF-8 text, {file}: {error}", param_hint="--context-file"
        ) from None


def _table(answered: AnsweredQuestions) -> Table:
    table = Table("answer", "score", "characters")
    table.columns[0].overflow = "fold"
    for result in answered.results:
        if isinstance(result, ItemError):
            continue
        for found in result.answers:
            table.add_row(found.text or "(no answer)", f"{found.score:.3f}", f"{found.start} to {found.end}")
    return table
