"""Language models as files: n-grams and neural ones (.safetensors), ARPA, KenLM; nothing in them runs code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from lm.config import Config, build_config
from lm.errors import BundleError, ConfigError
from lm.language_model import ContextStore, LanguageModel
from lm.tokenizer import Tokenizer
from lm.vocabulary import Units, WordVocabulary

ARPA = (".arpa", ".arpa.gz", ".arpa.xz")
NEURAL = ("transformer", "lstm", "based", "contextual")
KENLM = (".bin", ".binary", ".klm", ".kenlm", ".mmap", ".trie")


class Contextual(Protocol):
    """What a search asks of a language model."""

    def contexts(self, ends: bool = False) -> ContextStore:
        """Contexts for one search, with ``ends`` such that score ends of sentences."""
        ...


def model_name(path: Path) -> str:
    """The name that a language model's file gives it: without folder and endings."""
    for ending in (*ARPA, *KENLM, ".safetensors"):
        if path.name.endswith(ending):
            return path.name.removesuffix(ending)
    return path.name


def load_language_model(path: Path, tokenizer: Tokenizer | WordVocabulary, device: str = "cpu") -> Contextual:
    """Read a language model for the tokens of ``tokenizer``.

    Args:
        path: ``.safetensors`` as this toolkit writes them, ``.arpa`` (also .gz, .xz), or a KenLM binary.
        tokenizer: its tokens are the words of the language model; a vocabulary for neural models over words.
        device: where its scores are wanted.

    Raises:
        ConfigError: a file of another kind, or a language model for another tokenizer.
        BundleError: a damaged file.
    """
    if isinstance(tokenizer, WordVocabulary) and path.suffix != ".safetensors":
        raise ConfigError(
            f"the n-gram model {path.name} over words where tokens are asked for", "a neural language model",
            "use it for rescoring with unit word",
        )  # fmt: skip
    if path.name.endswith(ARPA):
        from lm.ngram import NGramModel

        return NGramModel.from_arpa(path, tokenizer).to(device)
    if path.name.endswith(KENLM):
        from lm.kenlm_model import KenLM

        return KenLM(path, tokenizer, device)
    if path.suffix != ".safetensors":
        raise ConfigError(
            f"language model {path.name}", "a name in .safetensors, .arpa, .arpa.gz, .bin or .klm", "rename it"
        )  # fmt: skip
    kind, config = _header(path, tokenizer)
    if kind == "ngram":
        from lm.ngram import NGramModel

        return NGramModel.load(path, tokenizer).to(device)
    if kind in NEURAL:
        return _load_neural(path, kind, config, tokenizer, device)
    known = ", ".join(("ngram", *NEURAL))
    raise ConfigError(f"{path}: language model of kind {kind!r}", known, "install the Vocative that wrote it")


def make_language_model(kind: str, config: dict[str, Any], tokenizer: Units, source: str) -> LanguageModel:
    """A neural language model with fresh weights.

    Args:
        kind: one of ``NEURAL``.
        config: its shape.
        tokenizer: whose tokens and classes it is over.
        source: where the shape came from, for errors.

    Raises:
        ConfigError: a shape that cannot be.
    """
    sizes = tokenizer.vocab_size, tokenizer.num_classes
    if kind == "lstm":
        from lm.lstm import LSTMLM, LSTMLMConfig

        return LSTMLM(build_config(LSTMLMConfig, config, source), *sizes)
    if kind == "based":
        from lm.based import BasedLM, BasedLMConfig

        return BasedLM(build_config(BasedLMConfig, config, source), *sizes)
    if kind == "contextual":
        from lm.contextual import ContextualLM, ContextualLMConfig

        return ContextualLM(build_config(ContextualLMConfig, config, source), *sizes)
    from lm.transformer import TransformerLM, TransformerLMConfig

    return TransformerLM(build_config(TransformerLMConfig, config, source), *sizes)


def save_language_model(
    path: Path, kind: str, config: Config, model: LanguageModel, tokenizer: Units
) -> None:
    """Write a neural language model with its shape and its tokenizer's fingerprint, or with its vocabulary."""
    from safetensors.torch import save_file

    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}
    metadata = {"kind": kind, "config": config.model_dump_json(), "tokenizer": tokenizer.digest}
    if isinstance(tokenizer, WordVocabulary):
        metadata["words"] = tokenizer.to_json()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)


def vocabulary_of(path: Path) -> WordVocabulary | None:
    """The vocabulary of a language model over words, which is in its file; None for one over subwords.

    Raises:
        BundleError: a damaged file.
    """
    words = _metadata(path).get("words")
    return None if words is None else WordVocabulary.from_json(words, str(path))


def shape_of(path: Path, tokenizer: Units) -> dict[str, Any] | None:
    """The shape of a language model (its configuration); None for a file of other tensors.

    Raises:
        ConfigError: a language model for another tokenizer.
        BundleError: a damaged file.
    """
    if "kind" not in _metadata(path):
        return None
    shape: dict[str, Any] = json.loads(_header(path, tokenizer)[1])
    return shape


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path}: {error}", "a language model", "copy it again or train it anew") from None


def _header(path: Path, tokenizer: Units) -> tuple[str, str]:
    """Kind and configuration, once the tokenizer is seen to be the same."""
    metadata = _metadata(path)
    if "kind" not in metadata or "tokenizer" not in metadata:
        raise BundleError(
            f"{path} is no language model", "tensors with a kind and a tokenizer", "check the path"
        )
    if metadata["tokenizer"] != tokenizer.digest and "words" in metadata:
        raise ConfigError(
            f"language model {path.name} over words", "one over the model's subwords",
            "use it for rescoring with unit word",
        )  # fmt: skip
    if metadata["tokenizer"] != tokenizer.digest:
        raise ConfigError(
            f"language model {path.name} of another tokenizer", "one trained with the model's tokenizer",
            "train it with the tokenizer.model of this model folder",
        )  # fmt: skip
    return metadata["kind"], metadata.get("config", "{}")


def _load_neural(path: Path, kind: str, config: str, tokenizer: Units, device: str) -> LanguageModel:
    from safetensors.torch import load_file

    model = make_language_model(kind, json.loads(config), tokenizer, str(path))
    try:
        model.load_state_dict(load_file(str(path)))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise BundleError(
            f"{path}: {reason}", "the tensors its configuration describes", "copy it again"
        ) from None
    return model.to(device).eval()
