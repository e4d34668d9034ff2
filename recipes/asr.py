"""The recipe every corpus shares: data, manifests, tokenizer, training, model, tuning, decoding, scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm.config import build_config
from lm.errors import ConfigError
from recipes import evaluate, train
from recipes.config import RecipeConfig
from recipes.corpora.an4 import CLASSES as AN4_CLASSES
from recipes.corpora.an4 import An4Config, prepare
from recipes.corpora.contacts import VERSION as CONTACTS_VERSION
from recipes.corpora.contacts import ContactsConfig, make_contacts
from recipes.corpora.contacts_text import CLASSES as CONTACTS_CLASSES
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
    """
    folder = train.Layout(workdir)
    stages = (
        _data_stage(config, folder, corpus),
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
        Stage(
            "train",
            "train the model",
            (folder.cuts("train"), folder.cuts("dev"), folder.tokenizer, folder.data / "lm_text.txt"),
            (folder.weights,),
            _params(config, "family", "model", "loss", "features", "training"),
            lambda: train.train_model(config, folder),
        ),
        Stage(
            "model",
            "tune the search on dev and pack the model",
            (folder.weights, folder.tokenizer, folder.cuts("dev"), folder.data / "dev_entities.yaml"),
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
                folder.data / "entities.yaml",
            ),
            (folder.results, folder.report),
            {"corpus": config.corpus, "systems": [system.name for system in config.systems]},
            lambda: evaluate.score_systems(config, folder),
        ),
    )
    return Recipe(config.corpus, workdir, stages)


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


def _params(config: RecipeConfig, *names: str) -> dict[str, Any]:
    return {name: config.model_dump(mode="json")[name] for name in names}
