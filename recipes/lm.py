"""The recipe of a language model: units, text as tokens, training, perplexity."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.errors import ConfigError, DataError
from lm.vocabulary import TOKENIZER, WORDS, WordVocabulary, find_units, load_units
from recipes.config import NGramConfig
from recipes.console import say
from recipes.lm_config import FileUnits, LMRecipeConfig, TextConfig, WordUnits
from recipes.recipe import Recipe
from recipes.stage import Stage

if TYPE_CHECKING:
    from lm.tokenizer import Tokenizer
    from lm.utterance_context import UtteranceContext


@dataclass(frozen=True)
class LMLayout:
    """Where the experiment keeps its files."""

    workdir: Path
    config: LMRecipeConfig

    @property
    def over_words(self) -> bool:
        """Whether the tokens are words."""
        units = self.config.units
        if isinstance(units, FileUnits):
            return find_units(units.path).suffix == ".json"
        return isinstance(units, WordUnits)

    @property
    def units(self) -> Path:
        """Tokenizer or vocabulary."""
        return self.workdir / (WORDS if self.over_words else TOKENIZER)

    def tokens(self, text: str) -> Path:
        """An encoded text."""
        return self.workdir / "tokens" / text

    @property
    def training(self) -> Path:
        """Checkpoints and curves."""
        return self.workdir / "training"

    @property
    def model(self) -> Path:
        """The finished model."""
        arpa = self.over_words and isinstance(self.config.lm, NGramConfig)
        return self.workdir / f"{self.config.lm.kind}.{'arpa' if arpa else 'safetensors'}"

    @property
    def results(self) -> Path:
        """Perplexities."""
        return self.workdir / "RESULTS.json"


def lm_recipe(config: LMRecipeConfig, workdir: Path, source: Path | None = None) -> Recipe:
    """The stages of one experiment in ``workdir``.

    Args:
        config: the experiment.
        workdir: everything it makes.
        source: folder that the texts are in.

    Raises:
        ConfigError: a text or a shape that cannot be.
    """
    folder = LMLayout(workdir, config)
    train = tuple(_resolved(text, source) for text in config.train)
    judged = {"dev": config.dev, **config.evaluation}
    texts = {name: _resolved(text, source) for name, text in judged.items()}
    if {"dev", "train"} & config.evaluation.keys():
        raise ConfigError("evaluation.dev or evaluation.train", "other names", "dev is reported anyway")
    given = find_units(config.units.path) if isinstance(config.units, FileUnits) else None
    tokens = {name: folder.tokens(name) for name in ("train", *texts)}
    settings = config.lm.model_dump(mode="json")
    stages = (
        Stage(
            "units",
            f"take the units of {given}" if given else "learn units from the training text",
            (given,) if given else tuple(text.path for text in train),
            (folder.units,),
            {
                "units": config.units.model_dump(mode="json"),
                "classes": list(config.classes),
                "train": _caps(train),
            },
            partial(_make_units, config, folder, train),
        ),
        Stage(
            "text",
            "encode the texts",
            (folder.units, *(text.path for text in (*train, *texts.values()))),
            tuple(tokens.values()),
            {"train": _caps(train), "judged": {name: _caps((text,)) for name, text in texts.items()}},
            partial(_encode, folder, train, texts),
        ),
        Stage(
            "train",
            f"train the language model{_size(config)}",
            (folder.units, tokens["train"], tokens["dev"]),
            (folder.model,),
            {"lm": settings, "seed": config.seed},
            partial(_train, config, folder),
        ),
        Stage(
            "score",
            "perplexity on every text but the training text",
            (folder.units, folder.model, *tokens.values()),
            (folder.results,),
            {"texts": list(texts), "head_and_tail": config.head_and_tail},
            partial(_score, config, folder, texts),
        ),
    )
    return Recipe(f"{config.corpus} language model", workdir, stages)


def lines_of(text: TextConfig) -> Iterator[str]:
    """Sentences of a text, one at a time.

    Raises:
        DataError: it cannot be read.
    """
    from lm.text_files import is_jsonl

    if is_jsonl(text.path):
        yield from (sentence for sentence, _ in _said(text))
    else:
        yield from (line.partition(" ")[2] if text.ids else line for line in _raw(text))


def contexts_of(texts: Sequence[TextConfig]) -> Iterator[UtteranceContext] | None:
    """What each of the sentences was said in; None where no text tells.

    Raises:
        DataError: a text cannot be read.
    """
    from lm.text_files import is_jsonl

    telling = [text for text in texts if is_jsonl(text.path) and text.contexts != "none"]
    return chain.from_iterable(map(_contexts, texts)) if telling else None


def _contexts(text: TextConfig) -> Iterator[UtteranceContext]:
    from lm.text_files import is_jsonl

    if not is_jsonl(text.path) or text.contexts == "none":
        return ({} for _ in lines_of(text))
    own = (context for _, context in _said(text))
    if text.contexts == "own":
        return own
    others = list(own)
    random.Random(0).shuffle(others)
    return iter(others)


def _raw(text: TextConfig) -> Iterator[str]:
    """Lines of the file, as many as are taken."""
    from lm.text_files import read_lines

    left = text.bytes
    end = None if text.sentences is None else text.skip + text.sentences
    for line in islice(read_lines(text.path), text.skip, end):
        if left is not None:
            left -= len(line.encode()) + 1
            if left < 0:
                return
        yield line


def _said(text: TextConfig) -> Iterator[tuple[str, UtteranceContext]]:
    """Sentences in .jsonl and their contexts."""
    from lm.utterance_context import said_in

    return said_in(text.path, _raw(text), text.text, text.context, text.skip + 1)


def _resolved(text: TextConfig, source: Path | None) -> TextConfig:
    """The text with the place of its file: that in the folder of the corpus, if there is one."""
    inside = source / text.path if source else text.path
    return text.model_copy(update={"path": inside if inside.exists() else text.path})


def _caps(texts: tuple[TextConfig, ...]) -> list[dict[str, Any]]:
    return [text.model_dump(mode="json", exclude={"path"}) for text in texts]


def _size(config: LMRecipeConfig) -> str:
    """The kind and the number of parameters, where it is known before the units are; a wrong shape is told here."""
    import torch

    from lm.model_files import make_language_model

    if isinstance(config.lm, NGramConfig):
        return f", an n-gram of order {config.lm.order}"
    units = config.units
    if isinstance(units, FileUnits):
        sizes: Any = load_units(units.path)
    else:
        sizes = _Sizes(units.size if isinstance(units, WordUnits) else units.vocab_size, len(config.classes))
    with torch.device("meta"):
        model = make_language_model(config.lm.kind, config.lm.model, sizes, "lm.model")
    return f", {config.lm.kind} of {sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters"


@dataclass(frozen=True)
class _Sizes:
    vocab_size: int
    num_classes: int


def _make_units(config: LMRecipeConfig, folder: LMLayout, train: tuple[TextConfig, ...]) -> None:
    from lm.tokenizer import Tokenizer

    units = config.units
    lines = chain.from_iterable(map(lines_of, train))
    made: Tokenizer | WordVocabulary
    if isinstance(units, FileUnits):
        made = load_units(units.path)
        if config.classes and config.classes != made.classes:
            raise ConfigError(
                f"classes {', '.join(config.classes)}",
                f"those of {units.path}: {', '.join(made.classes) or 'none'}",
                "leave classes out",
            )
    elif isinstance(units, WordUnits):
        made = WordVocabulary.learn(lines, units.size, config.classes)
    else:
        made = Tokenizer.train(
            islice(lines, units.sentences), units.vocab_size, config.classes, units.model_type, case="upper"
        )
    made.save(folder.units)
    say(f"    {made.vocab_size} surface tokens, {made.num_classes} classes")


def _encode(folder: LMLayout, train: tuple[TextConfig, ...], texts: dict[str, TextConfig]) -> None:
    from asr.data.token_text import describe_text, encode_text

    units = load_units(folder.units)
    groups = {"train": train} | {name: (text,) for name, text in texts.items()}
    for name, group in groups.items():
        lines = chain.from_iterable(map(lines_of, group))
        summary = encode_text(lines, units, folder.tokens(name), contexts_of(group))
        say(f"    {name}: {describe_text(summary, units)}")
    _refuse_known(train, texts)


def _refuse_known(train: tuple[TextConfig, ...], texts: dict[str, TextConfig]) -> None:
    """Refuse texts to judge on that the training text holds."""
    from asr.leaks import MOST, SHORTEST, overlap
    from lm.tagged_text import parse

    for name, text in texts.items():
        found = overlap(map(parse, lines_of(text)), chain.from_iterable(map(lines_of, train)))
        say(
            f"    {100 * found.share:.2f} % of {name} stand in the training text, sentences of {SHORTEST} words up"
        )
        if found.share > MOST:
            raise DataError(
                f"{found.known} of {found.sentences} sentences of {name} stand in the training text, such as "
                f"{found.example!r}",
                "text of its own to judge on",
                "take it out of the training text",
            )


def _train(config: LMRecipeConfig, folder: LMLayout) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from asr.data.token_text import TokenText
    from recipes.language_models import train_language_model

    torch.set_num_threads(config.threads)
    train_language_model(
        config.lm,
        TokenText(folder.tokens("train")),
        TokenText(folder.tokens("dev")),
        load_units(folder.units),
        folder.model,
        folder.training,
        config.seed,
        config.lm.kind,
    )


def _score(config: LMRecipeConfig, folder: LMLayout, texts: dict[str, TextConfig]) -> None:
    from asr.data.token_text import TokenText
    from asr.scoring.head_tail import head_and_tail
    from asr.scoring.perplexity import perplexity, score_file, score_words
    from lm.word_ngram import load_word_lm

    figures = {}
    units, train = load_units(folder.units), TokenText(folder.tokens("train"))
    for name, text in texts.items():
        encoded = TokenText(folder.tokens(name))
        if folder.model.suffix == ".arpa":
            found = {"as spoken": score_words(load_word_lm(folder.model), lines_of(text))}
        else:
            found = score_file(folder.model, encoded, units)
        if config.head_and_tail:
            halves = head_and_tail(train, encoded, units)
            found |= {
                f"{how}, {half}": scores.part(chosen)
                for how, scores in found.items()
                for half, chosen in halves.items()
                if chosen.any()
            }
        for how, scores in found.items():
            figure = perplexity(scores)
            figures[f"{name}, {how}"] = figure.to_dict()
            say(f"    {name}, {how}: " + figure.to_text().replace("\n", "\n        "))
    folder.results.write_text(json.dumps(figures, indent=1) + "\n")
