"""``asr compare CONFIG``: run experiments with several seeds, and print the table of what came out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lm.config import apply_overrides, build_config, read_yaml
from lm.errors import ConfigError
from recipes.command import usual_place

if TYPE_CHECKING:
    from recipes.comparison import ComparisonConfig

Results = Annotated[
    Path | None,
    typer.Option(help="Folder with a small file a finished run; results/ beside the configuration's folder."),
]


def compare(
    config: Annotated[
        Path, typer.Argument(help="YAML file of the comparison, for example egs/an4/conf/families.yaml.")
    ],
    corpus: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the corpus, where one is needed; that of its name in $VOCATIVE_CORPORA if not given."
        ),
    ] = None,
    workdir: Annotated[
        Path | None, typer.Option(help="Folder for all runs; exp/CORPUS-CONFIG if not given.")
    ] = None,
    results: Results = None,
    only: Annotated[
        str, typer.Option(help="Experiments to run or to show, with commas between; all if not given.")
    ] = "",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting, for example seeds=[0].")
    ] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Print the table of what is there, run nothing.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, and why; write nothing.")
    ] = False,
) -> None:
    """Run every experiment of a comparison with every seed, and print a table in Markdown.

    A run that was finished, here or elsewhere, is not done again: its figures are in the results folder. A run that
    was interrupted goes on where it was. WER is the mean over seeds with a 95 % bootstrap interval over utterances;
    training is CPU time, decoding seconds of audio a CPU second, delay the median time by which a right word begins
    later than in the alignment of the reference.

    Examples:

    \b
      asr compare egs/an4/conf/families.yaml --corpus corpora/an4
      asr compare egs/an4/conf/families.yaml --corpus corpora/an4 --only ctc,aed --set seeds=[0]
      asr compare egs/an4/conf/families.yaml --table
    """
    from recipes.comparison import Comparison, ComparisonConfig
    from recipes.comparison import table as as_table

    values = apply_overrides(read_yaml(config), set_ or [])
    chosen = build_config(ComparisonConfig, values, str(config))
    name = str(chosen.base.get("corpus"))
    names = _names(only, chosen)
    place = workdir or Path("exp") / f"{name}-{config.stem}"
    kept = results or config.parent.parent / "results" / config.stem
    nowhere = Path() if table else None  # a table of what is there needs no recordings
    made = Comparison(chosen, place, kept, corpus or usual_place(name) or nowhere)
    if not table:
        made.run(names, dry_run)
    elif results and not results.is_dir():
        raise ConfigError(
            f"--results {results}", "a folder with results", "correct it, or run the comparison"
        )
    if not dry_run:
        print(as_table(made, names))


def _names(only: str, config: ComparisonConfig) -> list[str]:
    names = [part for part in only.split(",") if part]
    if unknown := [part for part in names if part not in config.experiments]:
        raise ConfigError(f"--only {unknown[0]}", f"one of {', '.join(config.experiments)}", "correct it")
    return names
