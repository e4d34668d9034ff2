"""What a recipe has to know about a corpus; each corpus says it in a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lm.config import Config, build_config

Lists = Literal["none", "corpus", "utterance"]
"""Entity lists of a corpus: there are none, one for all recordings of a split, or one for each recording."""


@dataclass(frozen=True)
class Corpus:
    """One corpus.

    Attributes:
        name: as in ``corpus:`` of a configuration.
        config: its settings, ``data:`` of a configuration.
        prepare: called with the folder of the recordings, the folder to write and the settings. Writes a Kaldi
            folder with ``tagged`` for each split, ``lm_text.txt`` where there is training speech, and the entity
            lists of dev and test in the files that ``corpora.lists`` reads.
        description: what that is, with ``{source}`` for the folder of the recordings.
        inputs: what it reads, as a function of that folder and the settings; the data stage runs again when
            one of these changes.
        needs_source: whether there is a folder of recordings, given by ``--corpus``.
        splits: those it has; one with test alone cannot be trained on.
        classes: entity classes, in the order of their ids; possibly none.
        lists: what kind of entity lists it has.
        synthetic: whether its speech is made by a machine, which reports say.
        version: raised when ``prepare`` makes something else from the same settings.
        fits: classes and lists by its settings, for a corpus whose settings say them.
    """

    name: str
    config: type[Config]
    prepare: Callable[[Path, Path, Any], None]
    description: str
    inputs: Callable[[Path, Any], tuple[Path, ...]]
    needs_source: bool = True
    splits: tuple[str, ...] = ("train", "dev", "test")
    classes: tuple[str, ...] = ()
    lists: Lists = "none"
    synthetic: bool = False
    version: int = 1
    fits: Callable[[Any], tuple[tuple[str, ...], Lists]] | None = None

    def of(self, values: dict[str, Any]) -> Corpus:
        """The corpus with the classes and lists that ``data:`` of a configuration says it has."""
        if self.fits is None:
            return self
        classes, lists = self.fits(self.settings(values))
        return replace(self, classes=classes, lists=lists)

    def settings(self, values: dict[str, Any]) -> Config:
        """Its settings from ``data:`` of a configuration.

        Raises:
            ConfigError: one that it does not have.
        """
        return build_config(self.config, values, "data")
