"""Settings of recognition, kept in a model's ``config.yaml`` and changeable for each call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from decoding.confidence import DEFAULT, ConfidenceConfig
from decoding.frame_sync import BeamConfig
from lm.config import Config, build_config, merge


class FusionConfig(Config):
    """An external language model in the search; a weight of 0 leaves it out."""

    lm: str = ""
    """Its name: a file in the model's ``lm/`` without its ending, or one handed over with the call; empty for
    none."""
    weight: float = Field(0.3, ge=0)
    """Its weight, added to the model's scores (log-linear), or its share in the mixture."""
    how: Literal["add", "mix"] = "add"
    """``add`` its weighted log probabilities (shallow fusion), or ``mix`` it into the vocabulary predictor of a
    factorized transducer in the linear domain (arXiv 2305.17304); a mixture of weight 1 replaces the predictor."""
    end: bool = False
    """Whether it also scores the end of each utterance, as one of a sentence (arXiv 2104.03006); its tokens then
    leave the end its share of the probability. It must know ends: n-grams with ``</s>``, neural ones trained with
    ``end: true``. Off, because pieces of long recordings and streams cut at pauses often end elsewhere."""
    internal: Literal["none", "ilme", "lm"] = "none"
    """What is taken out: the model's own expectation of labels (``ilme``, arXiv 2011.01991), or a language model of
    its training transcripts: density ratio (arXiv 2002.11268), and with a bigram LODR (arXiv 2203.16776)."""
    internal_lm: str = ""
    """Name of that language model, with ``internal: lm``."""
    internal_weight: float = Field(0.2, ge=0)
    """Weight of what is taken out."""

    @model_validator(mode="after")
    def _whole(self) -> FusionConfig:
        if (self.internal == "lm") != bool(self.internal_lm):
            raise ValueError("internal: lm and a name in internal_lm go together")
        if self.how == "mix" and self.weight > 1:
            raise ValueError("a weight of at most 1 with how: mix")
        if self.how == "mix" and self.end:
            raise ValueError("end: true only with how: add; a vocabulary predictor has no end to mix with")
        return self


class RescoringConfig(Config):
    """A second look at what was found, with a language model; a weight of 0 leaves it out."""

    lm: str = ""
    """Its name, as for fusion; empty for none."""
    weight: float = Field(0.3, ge=0)
    """Its weight, added to the scores of the search."""
    unit: Literal["subword", "word"] = "subword"
    """What it is a model of: the recognizer's tokens, or words (ARPA or KenLM files)."""
    end: bool | None = None
    """Whether it also scores the end of each utterance, as one of a sentence; if not said, a model of words does
    and one of tokens does not. See ``fusion.end``."""
    over: Literal["nbest", "lattice"] = "nbest"
    """Whether the n-best list is looked at, or the lattice of the search, which holds more."""
    keep: int = Field(8, ge=1)
    """Over a lattice: histories of the language model that are told apart at each of its nodes."""
    internal_lm: str = ""
    """Language model of the training transcripts that is taken out (density ratio, LODR); empty for none."""
    internal_weight: float = Field(0.2, ge=0)
    """Weight of what is taken out."""

    @property
    def active(self) -> bool:
        """Whether there is a second pass."""
        return bool((self.lm and self.weight) or (self.internal_lm and self.internal_weight))


class AttentionConfig(Config):
    """What only the search of an attention model (AED) has: its hypotheses end by themselves."""

    length_normalisation: float = Field(0.0, ge=0, le=1)
    """Final scores are divided by (labels + 1) to this power; 0 is off."""
    ctc_weight: float | None = Field(None, ge=0)
    """Weight of the CTC head: log P of all label sequences that begin with the hypothesis, added to the decoder's;
    λ of Watanabe et al. 2017 is ctc_weight / (1 + ctc_weight). Words then have the times of CTC's best path, not of
    where the decoder looked. If not said, 1 where the head was trained, else 0."""
    end_threshold: float | None = Field(None, gt=0)
    """A hypothesis may end only if log P(end) is at least this times the best log P(label); 1.1 in arXiv
    1905.04226. Against early ends where language models make labels dearer."""


class DecodingConfig(Config):
    """How a model is searched."""

    search: BeamConfig = BeamConfig()
    """The beam search."""
    attention: AttentionConfig = AttentionConfig()
    """How hypotheses of an attention model end; other families have no use for it."""
    candidates: int = Field(32, ge=1)
    """Tokens considered in each frame, best by acoustics."""
    lm_scale: float = Field(1.0, ge=0)
    """Weight μ of a factorized transducer's vocabulary predictor; other families have none."""
    biasing: Literal["auto", "classes", "phrases", "none"] = "auto"
    """What an entity list is used for: classes of a language model (C-FNT, or a class language model in fusion),
    phrases that get a bonus (Aho-Corasick), or nothing; ``auto`` takes classes where some language model knows
    them."""
    class_bonus: float = 0.0
    """Nats added to the log odds of every class against surface words; the only weight of classes."""
    phrase_bonus: float = Field(1.0, ge=0)
    """Nats added for each token of a phrase found, with biasing 'phrases'. So often the log of an entry's weight,
    against the mean of its class, is added once a phrase."""
    label_bonus: float = 0.0
    """Nats added for each label; language models in fusion make labels dearer and words are lost without it."""
    fusion: FusionConfig = FusionConfig()
    """An external language model in the search."""
    rescoring: RescoringConfig = RescoringConfig()
    """A language model behind the search, over the n-best list or the lattice."""
    confidence: ConfidenceConfig = DEFAULT
    """What the confidence of words is made of; ``asr tune`` fits it."""
    segment_s: float = Field(30.0, ge=1)
    """Longer recordings are cut into pieces of at most this length, at quiet places."""

    @property
    def subword_models(self) -> list[str]:
        """Names of the language models over subwords that are asked for, whatever their weights."""
        fusion, second = self.fusion, self.rescoring
        rescoring = second.lm if second.unit == "subword" else ""
        return [name for name in (fusion.lm, fusion.internal_lm, rescoring, second.internal_lm) if name]

    def changed(self, changes: Mapping[str, Any], source: str) -> DecodingConfig:
        """These settings with ``changes``, nested as in a model's ``config.yaml``.

        Raises:
            ConfigError: a setting that is not known or cannot be; ``source`` names where it came from.
        """
        return build_config(DecodingConfig, merge(self.model_dump(mode="json"), dict(changes)), source)
