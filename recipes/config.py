"""Configuration of a recognition recipe: what differs between corpora, models and systems, in one YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from asr.decoding_config import DecodingConfig
from asr.features import FeatureConfig
from asr.training.config import TrainingConfig
from asr.training.text_config import TextTrainingConfig
from lm.config import Config
from recipes.initial import InitialConfig
from recipes.sizes import SIZES

LMName: TypeAlias = Annotated[str, Field(pattern="^[a-z][a-z0-9_-]*$")]


class TokenizerConfig(Config):
    """The subword units."""

    vocab_size: int = Field(100, ge=2)
    """V, surface tokens; fewer when the text has no more to give."""
    model_type: Literal["unigram", "bpe", "char"] = "unigram"
    """How SentencePiece finds them."""


class NGramConfig(Config):
    """An n-gram language model over subwords and class tags, interpolated modified Kneser-Ney."""

    kind: Literal["ngram"]
    """What it is."""
    order: int = Field(4, ge=1, le=6)
    """Tokens a probability depends on, its own included."""
    prune: tuple[int, ...] = ()
    """N-grams seen no oftener than this are left out: a number for each order from the second on."""


class NeuralConfig(TextTrainingConfig):
    """A neural language model over subwords and class tags."""

    kind: Literal["transformer", "lstm", "based", "contextual"]
    """What it is; ``contextual`` wants text with contexts, which the language model recipe can read."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Its shape: the configuration of its kind."""


class FileConfig(Config):
    """A language model that was trained apart, over the subwords of this recipe's tokenizer."""

    kind: Literal["file"]
    """What it is."""
    path: Path
    """``.safetensors``, or an n-gram in ``.arpa`` (also .gz, .xz)."""


class SystemConfig(Config):
    """One row of the results: the trained model searched in one way."""

    name: str
    """What the row is called."""
    decoding: dict[str, Any] = Field(default_factory=dict)
    """Changes to the recipe's ``decoding``."""
    tune: dict[str, Annotated[list[float], Field(min_length=1)]] = Field(default_factory=dict)
    """Values to try on dev, by name of a decoding setting (``fusion.weight`` for one in a section); all
    combinations, the lowest dev WER wins."""


class RecipeConfig(Config):
    """A whole experiment."""

    recipe: Literal["asr"] = "asr"
    """What it trains: a recognizer."""
    corpus: str
    """Which corpus, a name in ``recipes/corpora/registry.py``."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Settings of that corpus."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """The subword units."""
    features: FeatureConfig = FeatureConfig()
    """Acoustic features."""
    family: str = "factorized"
    """Model family, a folder of ``asr/families``."""
    size: Literal["tiny", "small", "medium", "large"] | None = None
    """Shape of the model by name, see ``recipes/sizes.py``; what ``model`` says itself wins."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Shape of the model: the family's configuration."""
    loss: dict[str, Any] = Field(default_factory=dict)
    """The family's training objective."""
    initial: tuple[InitialConfig, ...] = ()
    """Models whose parts the training begins with."""
    training: TrainingConfig = TrainingConfig()
    """The training run."""
    decoding: DecodingConfig = DecodingConfig()
    """How the model is searched; kept in the finished model."""
    language_models: dict[
        LMName, Annotated[NGramConfig | NeuralConfig | FileConfig, Field(discriminator="kind")]
    ] = Field(default_factory=dict)
    """Language models by name, trained on the corpus's text or apart; they go into the model's ``lm/``."""
    systems: list[SystemConfig] = Field(min_length=1)
    """What is compared on the test set; the last one's settings become the model's own."""

    @model_validator(mode="before")
    @classmethod
    def _of_size(cls, values: Any) -> Any:
        size = values.get("size") if isinstance(values, dict) else None
        return SIZES[size](values) if isinstance(size, str) and size in SIZES else values
