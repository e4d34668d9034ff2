"""What a search knows besides what it hears: entity lists and language models, stacked as the options say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from asr.decoding_config import DecodingConfig
from decoding.class_status import END as SENTENCE_END
from decoding.class_status import ClassGrammar
from decoding.ctc_alignment import first_frames
from decoding.ctc_prefix import CTCPrefix
from decoding.frame_sync import BeamSearch
from decoding.internal_lm import ContextScorer, Interpolated, SplitEnd, Subtracted, density_ratio, ilme
from decoding.label_emitter import Attending, LabelSynchronous, Spelled, attended_frames
from decoding.label_sync import Heard, LabelBeamConfig, LabelBeamSearch
from decoding.lattice_rescoring import rescore_lattices
from decoding.length_bonus import LengthBonus
from decoding.phrase_boost import BoostGraph, PhraseBoost
from decoding.rescore import rescore_nbest
from decoding.scorer import Scorer
from decoding.trace import RawHypothesis
from decoding.word_scorer import WordScorer
from lm.classes import EncodedCatalog, EntityCatalog, encode_catalog
from lm.contextual import ContextualLM
from lm.errors import ConfigError
from lm.language_model import ContextStore
from lm.model_files import Contextual, load_language_model, model_name
from lm.prefix_tree import PrefixTree
from lm.tokenizer import Tokenizer
from lm.utterance_context import UtteranceContext, check_fields
from lm.word_ngram import END, WordLM, load_word_lm

Surroundings: TypeAlias = Sequence[UtteranceContext | None]
"""What surrounds each utterance of a batch; empty where nothing is known of any."""
MAX_LISTS = 64
"""Compiled sets of entity lists that are kept."""
CTC_WEIGHT = 1.0
"""Weight of a trained CTC head beside a decoder where nothing else is asked for."""


@dataclass(frozen=True)
class Lists:
    """One set of entity lists, ready to search with."""

    encoded: EncodedCatalog
    tree: PrefixTree
    boost: BoostGraph | None


class LanguageModels:
    """Language models by name, each read from its file when it is first needed.

    Args:
        files: where each is.
        tokenizer: of the model that they are used with.
        device: where their scores are wanted.
    """

    def __init__(self, files: Mapping[str, Path], tokenizer: Tokenizer, device: str = "cpu") -> None:
        self._files = dict(files)
        self._tokenizer = tokenizer
        self._device = device
        self._loaded: dict[str, Contextual] = {}
        self._words: dict[str, WordLM] = {}
        self._tagged: dict[str, bool] = {}

    @classmethod
    def of_folder(cls, folder: Path, tokenizer: Tokenizer, device: str = "cpu") -> LanguageModels:
        """The language models in a model folder's ``lm/``, each named like its file."""
        found = sorted(folder.glob("*")) if folder.is_dir() else []
        return cls({model_name(path): path for path in found if path.is_file()}, tokenizer, device)

    def add(self, name: str, path: Path) -> None:
        """Offer one more.

        Raises:
            ConfigError: there is no such file.
        """
        if not path.is_file():
            raise ConfigError(f"language model {path}", "a file", "check the path")
        self._files[name] = path
        self._loaded.pop(name, None)
        self._words.pop(name, None)
        self._tagged.pop(name, None)

    def get(self, name: str) -> Contextual:
        """The model of a name.

        Raises:
            ConfigError: there is none of that name, or it is of another tokenizer.
        """
        if name not in self._loaded:
            self._loaded[name] = load_language_model(self._file(name), self._tokenizer, self._device)
        return self._loaded[name]

    def _file(self, name: str) -> Path:
        if name not in self._files:
            known = ", ".join(sorted(self._files)) or "no language model"
            raise ConfigError(
                f"language model {name!r}",
                f"what the model folder has in lm/: {known}",
                "hand one over: --lm, --rescore-lm",
            )
        return self._files[name]

    def words(self, name: str) -> WordLM:
        """The word-level model of a name.

        Raises:
            ConfigError: there is none of that name.
        """
        if name not in self._words:
            self._words[name] = load_word_lm(self._file(name))
        return self._words[name]

    def contexts(self, name: str, surroundings: Surroundings = (), ends: bool = False) -> ContextStore:
        """Contexts of a model for one search; a contextual one takes of ``surroundings`` what it knows.

        Raises:
            ConfigError: with ``ends``, ends of sentences of a model that does not know them.
        """
        model = self.get(name)
        if not isinstance(model, ContextualLM) or not any(surroundings):
            return model.contexts(ends)
        return model.contexts(ends, _encoded(model, surroundings))

    def knows_classes(self, name: str) -> bool:
        """Whether class tags may follow in a model; one without them is no use for lists as classes."""
        if name not in self._tagged:
            self._tagged[name] = self.contexts(name).knows_classes
        return self._tagged[name]


class Knowledge:
    """The knowledge sources of one recognizer; lists used before are found again.

    Args:
        tokenizer: its tokenizer.
        models: its language models.
        own_classes: whether the model itself has a language model that knows classes.
    """

    def __init__(self, tokenizer: Tokenizer, models: LanguageModels, own_classes: bool) -> None:
        self.models = models
        self._tokenizer = tokenizer
        self._own_classes = own_classes
        self._lists: dict[tuple[str, bool], Lists] = {}

    def biasing(self, options: DecodingConfig) -> str:
        """What lists are used for: ``classes``, ``phrases`` or ``none``."""
        return resolve_biasing(options, self._own_classes, self.models.knows_classes)

    def lists(self, catalog: EntityCatalog | None, options: DecodingConfig) -> Lists | None:
        """Encode and compile lists.

        Raises:
            ConfigError: lists that cannot be had as phrases.
        """
        biasing = self.biasing(options)
        if catalog is None or biasing == "none":
            return None
        key = (catalog.fingerprint(), biasing == "phrases")
        if key not in self._lists:
            encoded = encode_catalog(catalog, self._tokenizer, foreign=biasing == "phrases")
            vocab, classes = self._tokenizer.vocab_size, self._tokenizer.num_classes
            if biasing == "phrases":
                tree, boost = PrefixTree.empty(vocab, classes), _phrases(encoded, vocab)
            else:
                tree, boost = PrefixTree.build(encoded, vocab, classes), None
            if len(self._lists) >= MAX_LISTS:
                self._lists.pop(next(iter(self._lists)))
            self._lists[key] = Lists(encoded, tree, boost)
        return self._lists[key]

    def check(self, surroundings: Surroundings, options: DecodingConfig) -> None:
        """Refuse what no language model of the search can use; where nothing is known nothing is wrong.

        Raises:
            ConfigError: there is no contextual language model.
            DataError: a field that none of them has, or a value that it cannot have.
        """
        if not any(surroundings):
            return
        named = map(self.models.get, options.subword_models)
        models = [model for model in named if isinstance(model, ContextualLM) and model.takes_context]
        if not models:
            raise ConfigError(
                "contexts of utterances where no language model takes any",
                "a contextual language model in fusion.lm or rescoring.lm",
                "name one (--lm, --rescore-lm), or leave the contexts out",
            )
        check_fields([field.name for model in models for field in model.config.fields], surroundings)
        for model in models:
            _encoded(model, surroundings)

    def grammar(
        self,
        emitter: Any,
        lists: Sequence[Lists | None],
        options: DecodingConfig,
        surroundings: Surroundings = (),
    ) -> ClassGrammar | None:
        """The class transitions of a batch, over the model's own language model, a mixture, or an external one.

        An external language model goes this way also without lists: in an utterance without them the classes
        have no part, and nothing depends on what shares its batch.

        Raises:
            ConfigError: lists as classes where no language model knows classes.
        """
        classed = self.biasing(options) == "classes" and any(lists)
        fused = options.fusion.weight > 0 and bool(options.fusion.lm)
        contexts, scale = emitter.contexts, None
        if fused and options.fusion.how == "mix":
            if contexts is None:
                raise ConfigError(
                    "fusion.how mix with a model that has no language model of its own",
                    "fusion.how add",
                    "use fusion.how=add",
                )
            external = self.models.contexts(options.fusion.lm, surroundings)
            contexts = Interpolated(contexts, external, options.fusion.weight)
        elif fused and contexts is None:
            fusion = options.fusion
            contexts, scale = self.models.contexts(fusion.lm, surroundings, fusion.end), fusion.weight
        elif not classed:
            return None
        if classed and (contexts is None or not contexts.knows_classes):
            raise ConfigError(
                "entity lists as classes where no language model knows classes",
                "a class language model in fusion.lm, or biasing phrases",
                "use biasing=phrases, a factorized model, or a language model trained on tagged text",
            )
        vocab, count = self._tokenizer.vocab_size, self._tokenizer.num_classes
        nothing = PrefixTree.empty(vocab, count)
        trees = [one.tree if one and classed else nothing for one in lists]
        starts_word = torch.from_numpy(self._tokenizer.starts_word)
        return ClassGrammar(contexts, starts_word, trees, options.class_bonus, lm_scale=scale)

    def scorers(
        self,
        emitter: Any,
        lists: Sequence[Lists | None],
        options: DecodingConfig,
        surroundings: Surroundings = (),
    ) -> list[Scorer]:
        """What is stacked beside the language model of the class transitions.

        Raises:
            ConfigError: an internal language model of a family that has none.
        """
        fusion, found = options.fusion, list[Scorer]()
        if options.label_bonus and not isinstance(emitter, LabelSynchronous):  # else the search's own
            found.append(LengthBonus(options.label_bonus, emitter.lengths.device))
        if spelled := _spelled(emitter, options):
            found.append(CTCPrefix(*spelled))
        if self.biasing(options) == "phrases" and any(lists):
            nothing = BoostGraph.build([], self._tokenizer.vocab_size)
            graphs = [one.boost if one and one.boost else nothing for one in lists]
            device = emitter.lengths.device
            found.append(PhraseBoost(graphs, weight=options.phrase_bonus, name="phrases", device=device))
        if fusion.lm and fusion.weight and fusion.how == "add" and emitter.contexts is not None:
            external = self.models.contexts(fusion.lm, surroundings, fusion.end)
            source = ContextScorer(external, "fusion", fusion.weight)
            found += (
                [SplitEnd(source, False, "fusion"), SplitEnd(source, True, SENTENCE_END)]
                if fusion.end
                else [source]
            )
        if fusion.internal == "lm":
            # It must know an end exactly if the external one does.
            ends = fusion.end and bool(fusion.lm) and fusion.weight > 0
            internal = self.models.contexts(fusion.internal_lm, surroundings, ends)
            source = ContextScorer(internal, "internal", 1.0)
            found.append(density_ratio(source, fusion.internal_weight))
        if fusion.internal == "ilme":
            model = emitter.contexts
            if model is None and hasattr(emitter, "internal"):
                model = emitter.internal()
            if model is None:
                raise ConfigError(
                    "fusion.internal ilme with a CTC model", "lm or none: CTC has no internal language model",
                    "use fusion.internal=lm with an n-gram of the training transcripts",
                )  # fmt: skip
            found.append(ilme(model, fusion.internal_weight))
        return found

    def search(
        self,
        emitter: Any,
        lists: Sequence[Lists | None],
        options: DecodingConfig,
        surroundings: Surroundings = (),
        lattices: bool = False,
    ) -> BeamSearch | LabelBeamSearch:
        """The search of a batch, as the options say, that remembers its lattices if they are wanted."""
        grammar = self.grammar(emitter, lists, options, surroundings)
        scorers = self.scorers(emitter, lists, options, surroundings)
        if isinstance(emitter, LabelSynchronous):
            spelled = _spelled(emitter, options)
            locate = None
            if spelled and isinstance(emitter, Attending):
                locate = partial(_heard, emitter, spelled[:2])
            return LabelBeamSearch(emitter, _label_beam(options), grammar, scorers, locate)
        over_lattice = options.rescoring.active and options.rescoring.over == "lattice"
        return BeamSearch(emitter, options.search, grammar, scorers, lattices=lattices or over_lattice)

    def rescored(
        self, search: BeamSearch | LabelBeamSearch, options: DecodingConfig, surroundings: Surroundings = ()
    ) -> Sequence[Sequence[RawHypothesis]]:
        """End a search: its n-best lists, after the second pass if there is one."""
        found = search.finish()
        if not options.rescoring.active:
            return found
        if options.rescoring.over == "nbest":
            return rescore_nbest(found, self._second_sources(options, surroundings))
        first = [(n, lattice) for n, lattice in enumerate(search.lattices()) if lattice is not None]
        left = [surroundings[n] for n, _ in first] if surroundings else ()
        sources = self._second_sources(options, left)
        second = iter(
            rescore_lattices([lattice for _, lattice in first], sources, keep=options.rescoring.keep)
        )
        return [next(second).nbest(options.search.nbest) if nbest else [] for nbest in found]

    def _second_sources(self, options: DecodingConfig, surroundings: Surroundings) -> list[Scorer]:
        second, sources = options.rescoring, list[Scorer]()
        if second.lm and second.weight:
            if second.unit == "word":
                sources.append(self._word_scorer(second.lm, second.weight, second.end is not False))
            else:
                contexts = self.models.contexts(second.lm, surroundings, second.end is True)
                sources.append(ContextScorer(contexts, "rescoring", second.weight))
        if second.internal_lm and second.internal_weight:
            # It must know an end exactly if what it is taken from does.
            ends = second.end is True and second.unit == "subword" and bool(second.lm and second.weight)
            internal = self.models.contexts(second.internal_lm, surroundings, ends)
            source = ContextScorer(internal, "internal", 1.0)
            sources.append(Subtracted(source, second.internal_weight, "rescoring_internal"))
        return sources

    def _word_scorer(self, name: str, weight: float, end: bool) -> WordScorer:
        model, tokenizer = self.models.words(name), self._tokenizer
        return WordScorer(
            model.logp,
            lambda tokens: [word for word, _, _ in tokenizer.words(tokens)],
            torch.from_numpy(tokenizer.starts_word),
            model.order,
            END if end else None,
            "rescoring",
            weight,
        )


def _encoded(model: ContextualLM, surroundings: Surroundings) -> Tensor:
    """What ``model`` has fields for."""
    known = {field.name for field in model.config.fields}
    return model.encode([{k: v for k, v in (each or {}).items() if k in known} for each in surroundings])


def _spelled(emitter: Any, options: DecodingConfig) -> tuple[Tensor, Tensor, float] | None:
    """What CTC says beside a decoder, and its weight; None where it has no say.

    Raises:
        ConfigError: a weight for a head that was not trained.
    """
    weight = options.attention.ctc_weight
    if weight == 0 or not isinstance(emitter, Spelled):
        return None
    said = emitter.ctc()
    if said is not None:
        return *said, CTC_WEIGHT if weight is None else weight
    if weight is None:
        return None
    raise ConfigError(
        f"attention.ctc_weight {weight:g} with a model whose CTC head was not trained",
        "one trained with loss.ctc_weight above 0",
        "use attention.ctc_weight=0",
    )


def _heard(emitter: Attending, said: tuple[Tensor, Tensor], tokens: Heard) -> Heard:
    """When CTC hears tokens, or where the decoder looked for those that CTC has too few frames for."""
    frames = first_frames(*said, tokens)
    if not any(None in found for found in frames):
        return [[places or () for places in found] for found in frames]
    looked = attended_frames(emitter, tokens)
    pairs = (zip(*both, strict=True) for both in zip(frames, looked, strict=True))
    return [[other if places is None else places for places, other in found] for found in pairs]


def _label_beam(options: DecodingConfig) -> LabelBeamConfig:
    """The settings of a label-synchronous search."""
    search, attention = options.search, options.attention
    return LabelBeamConfig(
        beam=search.beam,
        threshold=search.threshold,
        nbest=search.nbest,
        recombine=search.recombine,
        length_normalisation=attention.length_normalisation,
        length_bonus=options.label_bonus,
        end_threshold=attention.end_threshold,
        class_weight=options.fusion.weight or 1.0,
    )


def resolve_biasing(
    options: DecodingConfig, own_classes: bool, knows_classes: Callable[[str], bool] = lambda _: True
) -> str:
    """What lists are used for: ``classes``, ``phrases`` or ``none``.

    Args:
        options: settings of the search.
        own_classes: whether the model itself has a language model that knows classes.
        knows_classes: whether a language model, by its name, knows them.
    """
    if options.biasing != "auto":
        return options.biasing
    fused = bool(options.fusion.lm) and options.fusion.weight > 0
    return "classes" if own_classes or (fused and knows_classes(options.fusion.lm)) else "phrases"


def _phrases(encoded: EncodedCatalog, vocab: int) -> BoostGraph:
    """All entries of all classes as phrases.

    In classes the weight of an entry is its share of the class. Here its log, against the class's mean, is added
    once to the bonuses of its tokens, which do not become penalties.

    Raises:
        ConfigError: a class that is not a list.
    """
    for kind in encoded.classes:
        if kind.graph is not None:
            raise ConfigError(
                f"patterns or nested entries in class {kind.name!r} with biasing 'phrases'",
                "listed phrases, or biasing 'classes'",
                "list the phrases, or use a model with a class language model",
            )
    phrases = list[tuple[list[int], float]]()
    for kind in encoded.classes:
        weight = np.array([entry.weight for entry in encoded.catalog.classes[kind.name].entries])
        more = np.log(weight / weight.mean())[kind.entry] / np.diff(kind.offsets)
        parts = np.split(kind.tokens, kind.offsets[1:-1])
        phrases += zip((part.tolist() for part in parts), np.maximum(1 + more, 0).tolist(), strict=True)
    return BoostGraph.build(phrases, vocab)
