"""``asr train CONFIG``: run a recipe, or part of it. Also ``python -m recipes CONFIG``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lm.config import apply_overrides, build_config, read_yaml

if TYPE_CHECKING:
    from recipes.config import RecipeConfig
    from recipes.recipe import Recipe


def train(
    config: Annotated[
        Path, typer.Argument(help="YAML file of the experiment, for example egs/an4/conf/cfnt.yaml.")
    ],
    workdir: Annotated[
        Path | None,
        typer.Option(help="Folder for everything the recipe makes; exp/CORPUS-CONFIG if not given."),
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the corpus, where one is needed; that of its name in $VOCATIVE_CORPORA if not given."
        ),
    ] = None,
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
    """Train the model of an experiment, tune its search, and score it on the test set.

    The stages data, manifests, tokenizer, lm, train, model, decode and score run in turn; those whose inputs and
    settings did not change are skipped. A run that was interrupted, even by kill -9, goes on where it was when the
    same command is given again.

    Examples:

    \b
      asr train egs/mini_librispeech/conf/ctc.yaml --corpus corpora/mini_librispeech
      asr train egs/an4/conf/aed.yaml --corpus corpora/an4 --set training.seed=1 --workdir exp/an4-aed-s1
      asr train egs/an4/conf/aed.yaml --corpus corpora/an4 --dry-run
      torchrun --nproc-per-node 2 -m recipes egs/an4/conf/ctc.yaml --corpus corpora/an4 --set training.accumulate=2
    """
    from recipes.asr import asr_recipe
    from recipes.config import RecipeConfig

    values = apply_overrides(read_yaml(config), set_ or [])
    chosen = build_config(RecipeConfig, values, str(config))
    workdir = workdir or Path("exp") / f"{chosen.corpus}-{config.stem}"
    recipe = asr_recipe(chosen, workdir, corpus or usual_place(chosen.corpus))
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dry_run:
        recipe.run(stage, stop_stage, force, dry_run)
    else:
        _run_together(recipe, chosen, workdir, stage, stop_stage, force)


def _run_together(
    recipe: Recipe, config: RecipeConfig, workdir: Path, stage: str, stop_stage: str | None, force: bool
) -> None:
    """Run in several processes: the first runs the recipe, the others take part in its training."""
    from torch.distributed import destroy_process_group

    from asr.training.processes import Processes
    from recipes.train import OVER, Layout, follow

    processes = Processes()
    if processes.first:
        recipe.run(stage, stop_stage, force)  # when it fails, torchrun stops the others
        processes.tell(OVER)
    else:
        follow(config, Layout(workdir))
    destroy_process_group()


def usual_place(corpus: str) -> Path | None:
    """The corpus's folder where all corpora are, if it is there."""
    folder = Path(os.environ.get("VOCATIVE_CORPORA", "")) / corpus
    return folder if "VOCATIVE_CORPORA" in os.environ and folder.is_dir() else None
