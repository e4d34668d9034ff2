"""``asr classes``: what a model makes of each entry of a list of names."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asr.cli.console import put, say

if TYPE_CHECKING:
    from lm.classes import EncodingReport


def classes(
    entities: Annotated[
        Path, typer.Argument(metavar="LIST", help="Entity list: txt, csv, jsonl, yaml.", show_default=False)
    ],
    model: Annotated[
        Path, typer.Option("--model", "-m", metavar="DIR", help="A model folder.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    problems: Annotated[
        bool, typer.Option("--problems", help="Only entries that do not encode whole.")
    ] = False,
) -> int:
    """Show what a model makes of each entry of a list of names: its tokens, or why it cannot be recognised.

    Ends with 1 when an entry cannot be recognised at all, and with 2 when the list cannot be used.

    Examples:

    \b
      asr classes contacts.yaml --model exp/model
      asr classes contacts.yaml --model exp/model --problems
      asr classes contacts.yaml --model exp/model --json | jq .counts
    """
    from asr.recognizer import Recognizer
    from lm.classes import EntityCatalog

    catalog = EntityCatalog.load(entities)
    report = Recognizer.load(model).report(catalog)
    if as_json:
        put(report.to_json())
    else:
        _print_table(report, problems)
        say(report.summary())
    return 1 if report.counts()["failed"] else 0


def _print_table(report: EncodingReport, problems: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("class", "entry", "status", "tokens", "not encodable", box=box.SIMPLE)
    colours = {"ok": "green", "partly": "yellow", "failed": "red"}
    for row in report.rows():
        if problems and row.status == "ok":
            continue
        tokens = "  |  ".join(" ".join(form) for form in row.pieces)
        status = Text(row.status, style=colours[row.status])
        table.add_row(row.class_name, Text(row.text), status, Text(tokens), Text(row.unencodable))
    # Rich cuts columns to 80 characters where there is no terminal; a file or a pipe gets whole rows.
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 10_000).print(table)
