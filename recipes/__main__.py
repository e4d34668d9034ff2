"""``python -m recipes CONFIG --workdir DIR``: run a recipe, or part of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

# Two threaded processes on few cores spin against each other otherwise; must be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from lm.config import apply_overrides, build_config, read_yaml
from lm.errors import VocativeError


def run(
    config: Annotated[
        Path, typer.Argument(help="YAML file of the experiment, for example egs/an4/conf/fnt.yaml.")
    ],
    workdir: Annotated[Path, typer.Option(help="Folder for everything the recipe makes.")],
    corpus: Annotated[Path | None, typer.Option(help="Folder of the corpus, where one is needed.")] = None,
    stage: Annotated[str, typer.Option(help="First stage, by number or name.")] = "0",
    stop_stage: Annotated[str | None, typer.Option(help="Last stage, by number or name.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting, for example training.epochs=10.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run the stages even if nothing changed.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, and why; write nothing.")
    ] = False,
) -> None:
    """Run the stages of an experiment; those whose inputs and settings did not change are skipped.

    Stages: data, manifests, tokenizer, train, model, decode, score. A run that was interrupted, even by kill -9,
    goes on where it was when the same command is given again.
    """
    from recipes.asr import asr_recipe
    from recipes.config import RecipeConfig

    values = apply_overrides(read_yaml(config), set_ or [])
    recipe = asr_recipe(build_config(RecipeConfig, values, str(config)), workdir, corpus)
    recipe.run(stage, stop_stage, force, dry_run)


def main() -> None:
    """Run; what is wrong with the call is told in one line, exit code 2, a failed stage likewise with 1."""
    try:
        typer.run(run)
    except VocativeError as error:
        from lm.errors import ConfigError

        print(f"recipes: error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except OSError as error:
        print(f"recipes: error: {error}; expected files that can be read and written", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
