"""Configuration of a language model recipe: texts, units and one model, in one YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lm.config import Config
from lm.tagged_text import CLASS_NAME
from recipes.config import NeuralConfig, NGramConfig, TokenizerConfig

ClassName = Annotated[str, Field(pattern=f"^{CLASS_NAME.pattern}$")]


class TextConfig(Config):
    """A text: a sentence a line, plain or with class tags, in a file that may be .gz or .xz; read as a stream.

    In a file in .jsonl each line is a sentence with what it was said in: ``{"text": "…", "context": {"hour": 7}}``.
    """

    path: Path
    """The file, in the folder of the corpus or anywhere."""
    text: str = "text"
    """In .jsonl the key of the sentence."""
    context: str | tuple[str, ...] = "context"
    """In .jsonl the key of the context; or those of its fields, where they stand in the line itself."""
    contexts: Literal["own", "shuffled", "none"] = "own"
    """Whether sentences have their own contexts, those of others, drawn once (a control: they tell nothing), or
    none."""
    ids: bool = False
    """Whether each line begins with an utterance id, as Kaldi's ``text`` does."""
    skip: int = Field(0, ge=0)
    """Pass over so many lines first."""
    sentences: int | None = Field(None, ge=1)
    """Take no more lines than these."""
    bytes: int | None = Field(None, ge=1)
    """Take no more of it, unpacked, than these bytes, in whole lines."""


class SubwordUnits(TokenizerConfig):
    """Subwords learned from the training text."""

    kind: Literal["subword"]
    """What the tokens are."""
    sentences: int = Field(200_000, ge=1)
    """Sentences they are learned from."""


class WordUnits(Config):
    """Whole words."""

    kind: Literal["word"]
    """What the tokens are."""
    size: int = Field(20_000, ge=2)
    """The most frequent words of the training text, ``<unk>`` included."""


class FileUnits(Config):
    """The tokens of a model that there is already, so that the language model can go into its search."""

    kind: Literal["file"]
    """What the tokens are."""
    path: Path
    """A tokenizer (``tokenizer.model``), a vocabulary (``words.json``), or the work or model folder it is in."""


class LMRecipeConfig(Config):
    """A whole experiment with a language model."""

    recipe: Literal["lm"]
    """What it trains: a language model."""
    corpus: str
    """Name of the folder that the texts are in, where ``--corpus`` does not give it."""
    train: tuple[TextConfig, ...] = Field(min_length=1)
    """Texts to train on, one after another."""
    dev: TextConfig
    """Text to choose the weights with."""
    evaluation: dict[str, TextConfig] = Field(default_factory=dict)
    """More texts to report perplexity on, by name."""
    units: Annotated[SubwordUnits | WordUnits | FileUnits, Field(discriminator="kind")]
    """The model's tokens."""
    classes: tuple[ClassName, ...] = ()
    """Class tags of the texts; units from a file bring theirs."""
    head_and_tail: bool = False
    """Report perplexity also on two halves of each text: sentences of which even the rarest word is frequent in the
    training text (head), and the others (tail)."""
    lm: Annotated[NGramConfig | NeuralConfig, Field(discriminator="kind")]
    """The model and its training."""
    seed: int = 0
    """Seed of initial weights, batches and dropout."""
    threads: int = Field(1, ge=1)
    """CPU threads."""
