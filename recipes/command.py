"""``asr train CONFIG``: run a recipe, or part of it. Also ``python -m recipes CONFIG``."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lm.config import apply_overrides, build_config, read_yaml
from lm.errors import ConfigError

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

    The stages data, manifests, tokenizer, lm, train, model, decode and score run in turn; where the configuration
    says recipe: lm, a language model is trained in the stages units, text, train and score. Stages whose inputs and
    settings did not change are skipped. A run that was interrupted, even by kill -9, goes on where it was when the
    same command is given again.

    Examples:

    \b
      asr train egs/mini_librispeech/conf/ctc.yaml --corpus corpora/mini_librispeech
      asr train egs/an4/conf/aed.yaml --corpus corpora/an4 --set training.seed=1 --workdir exp/an4-aed-s1
      asr train egs/an4/conf/aed.yaml --corpus corpora/an4 --dry-run
      asr train egs/books_text/conf/lstm.yaml --corpus corpora/books_text
      torchrun --nproc-per-node 2 -m recipes egs/an4/conf/ctc.yaml --corpus corpora/an4 --set training.accumulate=2
    """
    values = apply_overrides(read_yaml(config), set_ or [])
    if "experiments" in values:
        raise ConfigError(f"{config} compares experiments", "one recipe", f"run asr compare {config}")
    kind = values.get("recipe", "asr")
    if kind not in RECIPES:
        near = difflib.get_close_matches(str(kind), RECIPES, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"{config}: recipe = {kind!r}", f"one of {', '.join(RECIPES)}", f"did you mean {near!r}?"
        )
    RECIPES[kind](_Call(config, values, workdir, corpus, stage, stop_stage, force, dry_run))


@dataclass(frozen=True)
class _Call:
    """What the command was given: ``values`` are those of the configuration ``config``."""

    config: Path
    values: dict[str, Any]
    workdir: Path | None
    corpus: Path | None
    stage: str
    stop_stage: str | None
    force: bool
    dry_run: bool

    def folder(self, corpus: str) -> Path:
        """Where the recipe works."""
        return self.workdir or Path("exp") / f"{corpus}-{self.config.stem}"

    def run(self, recipe: Recipe) -> None:
        """Run the stages that were asked for."""
        recipe.run(self.stage, self.stop_stage, self.force, self.dry_run)


def _asr(call: _Call) -> None:
    """A recognizer, possibly in several processes."""
    from recipes.asr import asr_recipe
    from recipes.config import RecipeConfig

    chosen = build_config(RecipeConfig, call.values, str(call.config))
    if chosen.training.shard:
        from asr.training.sharding import refuse_one_process

        refuse_one_process(_processes())
    workdir = call.folder(chosen.corpus)
    recipe = asr_recipe(chosen, workdir, call.corpus or usual_place(chosen.corpus))
    if _processes() == 1 or call.dry_run:
        call.run(recipe)
    else:
        _run_together(recipe, chosen, workdir, call.stage, call.stop_stage, call.force)


def _lm(call: _Call) -> None:
    """A language model, in one process."""
    from recipes.lm import lm_recipe
    from recipes.lm_config import LMRecipeConfig

    if _processes() > 1:
        raise ConfigError(
            f"recipe lm in {_processes()} processes",
            "one process",
            "start it with asr train, not with torchrun",
        )
    chosen = build_config(LMRecipeConfig, call.values, str(call.config))
    call.run(lm_recipe(chosen, call.folder(chosen.corpus), call.corpus or usual_place(chosen.corpus)))


RECIPES: dict[str, Callable[[_Call], None]] = {"asr": _asr, "lm": _lm}
"""By ``recipe:`` of a configuration; without it, a recognizer is trained."""


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


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
