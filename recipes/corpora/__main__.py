"""``python -m recipes.corpora NAME --corpus DIR --out DIR``: make the data of a corpus, without a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lm.config import apply_overrides
from lm.errors import ConfigError, VocativeError


def run(
    name: Annotated[str, typer.Argument(help="A corpus, for example kathleen.")],
    out: Annotated[Path, typer.Option(help="Folder for the data.")],
    corpus: Annotated[Path | None, typer.Option(help="Folder of the corpus, where one is needed.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the corpus, for example class_name=name.")
    ] = None,
) -> None:
    """Write the splits, entity lists and text of a corpus to a folder, for example to test a model on."""
    from recipes.corpora.registry import find_corpus

    found = find_corpus(name)
    settings = found.settings(apply_overrides({}, set_ or []))
    if corpus is None and found.needs_source:
        raise ConfigError(f"no folder for corpus {name!r}", "--corpus DIR", "say where the recordings are")
    found.prepare(corpus or Path(), out, settings)


def main() -> None:
    """Run; what is wrong is told in one line, exit code 2 for the call and 1 for the corpus."""
    try:
        typer.run(run)
    except VocativeError as error:
        print(f"recipes.corpora: error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


if __name__ == "__main__":
    main()
