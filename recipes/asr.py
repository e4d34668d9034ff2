"""The recipe every corpus shares: data, manifests, tokenizer, training, model, tuning, decoding, scores."""

from __future__ import annotations

import difflib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from asr.bundle import families
from asr.decoding_config import DecodingConfig
from asr.families import knows_classes, load_family
from lm.config import build_config, merge
from lm.errors import ConfigError
from lm.tokenizer import Tokenizer
from recipes import evaluate, train
from recipes.config import RecipeConfig
from recipes.corpora.an4 import CLASSES as AN4_CLASSES
from recipes.corpora.an4 import An4Config, prepare
from recipes.corpora.contacts import VERSION as CONTACTS_VERSION
from recipes.corpora.contacts import ContactsConfig, make_contacts
from recipes.corpora.contacts_text import CLASSES as CONTACTS_CLASSES
from recipes.language_models import make_language_models
from recipes.recipe import Recipe
from recipes.stage import Stage

SPLITS = ("train", "dev", "test")
CLASSES = {"an4": AN4_CLASSES, "contacts": CONTACTS_CLASSES}


def asr_recipe(config: RecipeConfig, workdir: Path, corpus: Path | None = None) -> Recipe:
    """The stages of one experiment in ``workdir``.

    Args:
        config: the experiment.
        workdir: everything it makes.
        corpus: folder of the corpus, for one that is not made on the spot.

    Raises:
        ConfigError: a setting that some stage could not use.
    """
    _check_model(config)
    _check_systems(config)
    folder = train.Layout(workdir)
    stages = (
        _data_stage(config, folder, corpus),
        *_training_stages(config, folder),
        *_result_stages(config, folder),
    )
    return Recipe(config.corpus, workdir, stages)


def _training_stages(config: RecipeConfig, folder: train.Layout) -> tuple[Stage, ...]:
    return (
        Stage(
            "manifests",
            "find the recordings and their durations",
            tuple(folder.data / split for split in SPLITS),
            tuple(folder.cuts(split) for split in SPLITS),
            {},
            lambda: train.make_manifests(folder, SPLITS),
        ),
        Stage(
            "tokenizer",
            "learn subword units from the training text",
            (folder.data / "train", folder.data / "lm_text.txt"),
            (folder.tokenizer,),
            config.tokenizer.model_dump(mode="json") | {"classes": list(CLASSES[config.corpus])},
            lambda: train.make_tokenizer(folder, config.tokenizer, CLASSES[config.corpus]),
        ),
        *_language_model_stages(config, folder),
        Stage(
            "train",
            "train the model",
            (folder.cuts("train"), folder.cuts("dev"), folder.tokenizer, folder.data / "lm_text.txt"),
            (folder.weights,),
            _params(config, "family", "model", "loss", "features", "training"),
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
        _params(config, "language_models") | {"seed": config.training.seed},
        lambda: make_language_models(config, folder),
    )
    return (stage,)


def _result_stages(config: RecipeConfig, folder: train.Layout) -> tuple[Stage, ...]:
    return (
        Stage(
            "model",
            "tune the search on dev and pack the model",
            (
                folder.weights,
                folder.tokenizer,
                folder.cuts("dev"),
                folder.data / "dev_entities.yaml",
                *(folder.language_model(name) for name in config.language_models),
            ),
            (folder.model, folder.tuned),
            _params(config, "family", "model", "features", "decoding", "systems"),
            lambda: evaluate.tune_and_pack(config, folder),
        ),
        Stage(
            "decode",
            "transcribe the test set with every system",
            (folder.model, folder.tuned, folder.cuts("test"), folder.data / "entities.yaml"),
            tuple(folder.hypotheses(system.name) for system in config.systems),
            {},
            lambda: evaluate.decode(folder, "test"),
        ),
        Stage(
            "score",
            "score, compare and write the report",
            (
                *(folder.hypotheses(system.name) for system in config.systems),
                folder.data / "test",
                folder.cuts("test"),
                folder.data / "entities.yaml",
            ),
            (folder.results, folder.report),
            {
                "corpus": config.corpus,
                "systems": {system.name: evaluate.emits_spans(config, system) for system in config.systems},
            },
            lambda: evaluate.score_systems(config, folder),
        ),
    )


def _data_stage(config: RecipeConfig, folder: train.Layout, corpus: Path | None) -> Stage:
    if config.corpus == "contacts":
        contacts = build_config(ContactsConfig, config.data, "data")
        return Stage(
            "data",
            "synthesise the contacts corpus (synthetic speech)",
            (),
            (folder.data,),
            config.data,
            lambda: make_contacts(contacts, folder.data),
            CONTACTS_VERSION,
        )
    if corpus is None:
        raise ConfigError(
            f"no folder for corpus {config.corpus!r}", "--corpus DIR", "say where the recordings are"
        )
    an4 = build_config(An4Config, config.data, "data")
    source = corpus
    return Stage(
        "data",
        f"prepare {config.corpus} from {corpus}",
        tuple(source / split for split in ("train", "test")),
        (folder.data,),
        config.data,
        lambda: prepare(source, folder.data, an4),
    )


def _check_model(config: RecipeConfig) -> None:
    """Build the model without memory for its weights: a typo in it shows before the corpus is made."""
    import torch

    if config.family not in families():
        near = difflib.get_close_matches(config.family, families(), n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"family {config.family!r}", f"one of {', '.join(families())}", f"did you mean {near!r}?"
        )
    sizes = SimpleNamespace(vocab_size=config.tokenizer.vocab_size, num_classes=len(CLASSES[config.corpus]))
    with torch.device("meta"):
        family = load_family(config.family, config.model, cast("Tokenizer", sizes), "the recipe")
    family.loss_config(config.loss)
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


def _params(config: RecipeConfig, *names: str) -> dict[str, Any]:
    return {name: config.model_dump(mode="json")[name] for name in names}
