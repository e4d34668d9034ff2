"""The recipe every corpus shares: data, manifests, tokenizer, training, model, tuning, decoding, scores."""

from __future__ import annotations

import difflib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from asr.bundle import families
from asr.data.distortion import find_noises
from asr.decoding_config import DecodingConfig
from asr.families import knows_classes, load_family
from lm.config import build_config, merge
from lm.errors import ConfigError
from lm.tokenizer import Tokenizer
from recipes import evaluate, train
from recipes.config import RecipeConfig
from recipes.corpora.corpus import Corpus
from recipes.corpora.lists import list_files
from recipes.corpora.registry import CORPORA, find_corpus
from recipes.language_models import make_language_models
from recipes.recipe import Recipe
from recipes.stage import Stage


def asr_recipe(config: RecipeConfig, workdir: Path, source: Path | None = None) -> Recipe:
    """The stages of one experiment in ``workdir``.

    Args:
        config: the experiment.
        workdir: everything it makes.
        source: folder of the corpus, for one that is not made on the spot.

    Raises:
        ConfigError: a setting that some stage could not use.
    """
    corpus = find_corpus(config.corpus).of(config.data)
    _check_corpus(corpus, config)
    _check_model(config, corpus)
    _check_systems(config)
    folder = train.Layout(workdir)
    stages = (
        _data_stage(config, corpus, folder, source),
        *_training_stages(config, corpus, folder),
        *_result_stages(config, corpus, folder),
    )
    return Recipe(config.corpus, workdir, stages)


def _training_stages(config: RecipeConfig, corpus: Corpus, folder: train.Layout) -> tuple[Stage, ...]:
    return (
        Stage(
            "manifests",
            "find the recordings and their durations",
            tuple(folder.data / split for split in corpus.splits),
            tuple(folder.cuts(split) for split in corpus.splits),
            {},
            lambda: train.make_manifests(folder, corpus.splits),
        ),
        Stage(
            "tokenizer",
            "learn subword units from the training text",
            (folder.data / "train", folder.data / "lm_text.txt"),
            (folder.tokenizer,),
            config.tokenizer.model_dump(mode="json") | {"classes": list(corpus.classes)},
            lambda: train.make_tokenizer(folder, config.tokenizer, corpus.classes),
        ),
        *_language_model_stages(config, folder),
        Stage(
            "train",
            "train the model",
            (
                *(folder.cuts("train"), folder.cuts("dev"), folder.tokenizer, folder.data / "lm_text.txt"),
                *(each.file for each in config.initial),
            ),
            (folder.weights,),
            train.params(config, "family", "model", "loss", "features", "training")
            | (train.params(config, "initial") if config.initial else {}),
            lambda: train.train_model(config, folder),
        ),
    )


def _language_model_stages(config: RecipeConfig, folder: train.Layout) -> tuple[Stage, ...]:
    if not config.language_models:
        return ()
    stage = Stage(
        "lm",
        "train language models on the training text",
        (folder.tokenizer, folder.data / "lm_text.txt", folder.data / "dev" / "tagged"),
        tuple(folder.language_model(name) for name in config.language_models),
        train.params(config, "language_models") | {"seed": config.training.seed},
        lambda: make_language_models(config, folder),
    )
    return (stage,)


def _result_stages(config: RecipeConfig, corpus: Corpus, folder: train.Layout) -> tuple[Stage, ...]:
    lists = list_files(corpus.lists, folder.data, "test")
    return (
        Stage(
            "model",
            "tune the search on dev and pack the model",
            (
                folder.weights,
                folder.tokenizer,
                folder.cuts("dev"),
                *list_files(corpus.lists, folder.data, "dev"),
                *(folder.language_model(name) for name in config.language_models),
            ),
            (folder.model, folder.tuned),
            train.params(config, "family", "model", "features", "decoding", "systems"),
            lambda: evaluate.tune_and_pack(config, folder),
        ),
        Stage(
            "decode",
            "transcribe the test set with every system",
            (folder.model, folder.tuned, folder.cuts("test"), *lists),
            (*(folder.hypotheses(system.name) for system in config.systems), folder.times),
            {},
            lambda: evaluate.decode(config, folder, "test"),
        ),
        Stage(
            "score",
            "score, compare and write the report",
            (
                *(folder.hypotheses(system.name) for system in config.systems),
                folder.data / "test",
                folder.cuts("test"),
                *lists,
            ),
            (folder.results, folder.report),
            {
                "corpus": config.corpus,
                "systems": {system.name: evaluate.emits_spans(config, system) for system in config.systems},
            },
            lambda: evaluate.score_systems(config, folder),
        ),
    )


def _data_stage(config: RecipeConfig, corpus: Corpus, folder: train.Layout, source: Path | None) -> Stage:
    if source is None and corpus.needs_source:
        raise ConfigError(
            f"no folder for corpus {corpus.name!r}", "--corpus DIR", "say where the recordings are"
        )
    settings, place = corpus.settings(config.data), source or Path()
    return Stage(
        "data",
        corpus.description.format(source=place),
        corpus.inputs(place, settings),
        (folder.data,),
        config.data,
        lambda: corpus.prepare(place, folder.data, settings),
        corpus.version,
    )


def _check_corpus(corpus: Corpus, config: RecipeConfig) -> None:
    """A corpus to train on, and no system that uses lists where it has none."""
    if "train" not in corpus.splits:
        others = ", ".join(name for name, other in CORPORA.items() if "train" in other.splits)
        raise ConfigError(
            f"corpus {corpus.name!r}, which has no training set",
            f"one of {others}",
            f"test a finished model on it with egs/{corpus.name}/run.sh",
        )
    base = config.decoding.model_dump(mode="json")
    for system in config.systems:
        biasing = merge(base, system.decoding).get("biasing")
        if corpus.lists == "none" and biasing in ("phrases", "classes"):
            raise ConfigError(
                f"system {system.name!r}: biasing {biasing!r} on corpus {corpus.name!r}, which has no entity lists",
                "biasing none",
                f"leave it out, or {'set data.lists' if corpus.fits else 'choose another corpus'}",
            )


def _check_model(config: RecipeConfig, corpus: Corpus) -> None:
    """Build the model without memory for its weights: a typo in it shows before the corpus is made."""
    import torch

    if config.family not in families():
        near = difflib.get_close_matches(config.family, families(), n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"family {config.family!r}", f"one of {', '.join(families())}", f"did you mean {near!r}?"
        )
    sizes = SimpleNamespace(vocab_size=config.tokenizer.vocab_size, num_classes=len(corpus.classes))
    with torch.device("meta"):
        family = load_family(config.family, config.model, cast("Tokenizer", sizes), "the recipe")
    family.loss_config(config.loss)
    if config.training.noise and config.training.noise.probability:
        find_noises(config.training.noise)
    _check_pretraining(config, family.model.get_submodule("encoder"))
    if config.training.text_sentences and not family.knows_classes:
        raise ConfigError(
            f"training.text_sentences with family {config.family!r}, which has no language model",
            "0",
            "train a language model on the text (language_models) and fuse it",
        )
    bins = len(family.model.get_submodule("normaliser").get_buffer("mean"))
    if bins != config.features.num_bins:
        raise ConfigError(
            f"features.num_bins = {config.features.num_bins}",
            f"the {bins} features that the model's encoder takes",
            "make them equal",
        )


def _check_pretraining(config: RecipeConfig, encoder: Any) -> None:
    """Each stage fits the encoder, and the whole of it is trained at the end."""
    stages = config.training.pretrain
    for stage in stages:
        encoder.set_stage(stage.layers, stage.reductions)
    if sum(stage.epochs for stage in stages) >= config.training.epochs:
        raise ConfigError(
            f"training.pretrain of {sum(stage.epochs for stage in stages)} epochs",
            f"fewer than training.epochs = {config.training.epochs}",
            "leave epochs for the whole model",
        )


def _check_systems(config: RecipeConfig) -> None:
    folder = train.Layout(Path())
    taken: dict[Path, str] = {}
    base = config.decoding.model_dump(mode="json")
    for system in config.systems:
        target = folder.hypotheses(system.name)
        if target in taken or not any(c.isalnum() for c in system.name):
            unlike = f" unlike {taken[target]!r}" if target in taken else ""
            raise ConfigError(f"system {system.name!r}", f"a name with letters{unlike}", "rename it")
        taken[target] = system.name
        start = merge(base, system.decoding)
        build_config(DecodingConfig, start, f"system {system.name!r}, decoding")
        if "lm_scale" in {**system.tune, **system.decoding} and not knows_classes(config.family):
            raise ConfigError(
                f"system {system.name!r}: lm_scale with family {config.family!r}, which has no language model",
                "fusion.weight",
                "leave it out, or name a language model in fusion.lm",
            )
        for name, values in system.tune.items():
            for value in values:
                build_config(
                    DecodingConfig, evaluate.changed(start, {name: value}), f"system {system.name!r}, tune"
                )
