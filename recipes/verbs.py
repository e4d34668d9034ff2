"""Verbs that the recipes bring to the command ``asr``, which finds them by the entry point ``vocative.verbs``."""

from __future__ import annotations

from asr.cli.main import Verb

TRAIN = Verb(
    "train", "Train a model by a recipe and score it: from recordings to a table.", "recipes.command"
)

COMPARE = Verb("compare", "Run experiments with several seeds and print their table.", "recipes.compare")
