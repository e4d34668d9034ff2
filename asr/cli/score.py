"""``asr score``: transcripts against references, one system or several side by side."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asr.cli.console import put, say
from lm.errors import ConfigError

if TYPE_CHECKING:
    from asr.scoring.score import ScoreReport


Report = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="Write a page to look at: .html.")
]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures as JSON.")]


def score(
    ref: Annotated[
        Path,
        typer.Argument(
            metavar="REF", help="Lines of id and words, entities tagged or not.", show_default=False
        ),
    ],
    hyp: Annotated[
        list[Path],
        typer.Argument(
            metavar="HYP...", help="Lines of id and words, or .jsonl; a file a system.", show_default=False
        ),
    ],
    entities: Annotated[
        Path | None,
        typer.Option(
            "--entities",
            "-e",
            metavar="LIST",
            help="The names that the systems were given, one list or one by recording: counts false alarms.",
        ),
    ] = None,
    report: Report = None,
    json: Json = None,
) -> int:
    """Compare transcripts with references: word errors, names found, names made up.

    Every figure comes with the 95 % interval of a bootstrap over utterances. Words are compared as they
    stand. Entities are tagged like this: utt1 call <contact>maja novak</contact> now

    Ends with 1 when a file lacks utterances of the reference; they are scored as deleted.

    Examples:

    \b
      asr score test.txt results/results.jsonl
      asr score test.txt plain.txt biased.jsonl --entities contacts.yaml --report test.html
    """
    from asr.scoring.read import read_hypotheses, read_references
    from asr.scoring.report import write_report
    from asr.scoring.score import compare
    from asr.scoring.score import score as score_one
    from lm.classes import EntityCatalog
    from lm.own_lists import read_entities

    names = system_names(hyp)
    references = read_references(ref)
    catalog = read_entities(entities) if entities else None
    if isinstance(catalog, dict):  # recordings that are not in it had no list
        catalog = {name: catalog.get(name, EntityCatalog.empty()) for name in references}
    reports = {
        name: score_one(references, read_hypotheses(path), catalog)
        for name, path in zip(names, hyp, strict=True)
    }
    put(next(iter(reports.values())).to_text() if len(reports) == 1 else compare(reports))
    if json:
        _write_json(json, reports)
    if report:
        say(f"wrote {write_report(report, f'Scores on {ref.name}', reports)}")
    return 1 if any(found.missing for found in reports.values()) else 0


def _write_json(path: Path, reports: Mapping[str, ScoreReport]) -> None:
    from asr.writers import write_whole

    figures = {name: json_module.loads(found.to_json()) for name, found in reports.items()}
    write_whole(path, json_module.dumps(figures, ensure_ascii=False, indent=2) + "\n")
    say(f"wrote {path}")


def system_names(paths: Sequence[Path]) -> list[str]:
    """A short name for each file: its stem, or where stems agree as much of the path as tells them apart.

    Raises:
        ConfigError: a file twice.
    """
    whole = [path.absolute().with_suffix("") for path in paths]
    for depth in range(1, max(len(path.parts) for path in whole) + 1):
        names = ["/".join(path.parts[-depth:]) for path in whole]
        if len(set(names)) == len(names):
            return names
    raise ConfigError(
        f"hypotheses {', '.join(map(str, paths))}",
        "a file of its own for each system",
        "name no file twice, and give files that differ only in suffix different names",
    )
