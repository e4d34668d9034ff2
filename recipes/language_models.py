"""Language models of recipes: trained on encoded text, judged on dev; the one place that starts such a training."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lm.errors import ConfigError
from recipes.config import FileConfig, NeuralConfig, NGramConfig, RecipeConfig
from recipes.console import progress, say
from recipes.train import Layout, put_aside

if TYPE_CHECKING:
    from asr.data.token_text import TokenText
    from lm.tokenizer import Tokenizer
    from lm.vocabulary import Units, WordVocabulary


def make_language_models(config: RecipeConfig, folder: Layout) -> None:
    """Train or take in every language model of a recognition recipe, and say what it makes of dev."""
    from asr.data.kaldi import read_table
    from asr.data.token_text import TokenText, encode_text
    from asr.scoring.perplexity import perplexity, score_file
    from lm.text_files import read_lines
    from lm.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(folder.tokenizer)
    place = folder.workdir / "lm-training"
    encode_text(read_lines(folder.data / "lm_text.txt"), tokenizer, place / "text")
    encode_text(read_table(folder.data / "dev" / "tagged").values(), tokenizer, place / "dev")
    text, dev = TokenText(place / "text"), TokenText(place / "dev")
    for name, settings in config.language_models.items():
        target = folder.language_model(name)
        if isinstance(settings, FileConfig):
            take_in(settings.path, tokenizer, target)
        else:
            train_language_model(
                settings, text, dev, tokenizer, target, place / name, config.training.seed, name
            )
        for how, scores in score_file(target, dev, tokenizer).items():
            say(f"    {name} on dev, {how}: " + perplexity(scores).to_text().replace("\n", "; "))


def train_language_model(
    settings: NGramConfig | NeuralConfig,
    text: TokenText,
    dev: TokenText,
    units: Tokenizer | WordVocabulary,
    target: Path,
    training: Path,
    seed: int,
    name: str,
) -> None:
    """Train one language model, or go on training it, and write it to ``target``.

    Args:
        settings: the model and its training.
        text: training text, encoded.
        dev: text to choose the weights with.
        units: what both are encoded in.
        target: ``.safetensors``; n-grams leave an ``.arpa`` beside it, those over words nothing else.
        training: folder of checkpoints and curves.
        seed: of weights, batches and dropout.
        name: shown with the progress.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(settings, NGramConfig):
        _train_ngram(settings, text, units, target)
    else:
        _train_neural(settings, text, dev, units, target, training, seed, name)


def take_in(path: Path, tokenizer: Tokenizer, target: Path) -> None:
    """Put a language model that was trained apart where those of the recipe are.

    Raises:
        ConfigError: it is of another tokenizer, or over words.
    """
    from lm.model_files import load_language_model
    from lm.ngram import NGramModel

    target.parent.mkdir(parents=True, exist_ok=True)
    model = load_language_model(path, tokenizer)
    if isinstance(model, NGramModel):
        model.save(target, tokenizer)
    else:
        target.write_bytes(path.read_bytes())


def _train_ngram(config: NGramConfig, text: TokenText, units: Units, target: Path) -> None:
    """Sentences count once as spoken and, if there are entities in them, once with their classes."""
    from lm.kneser_ney import train_arpa
    from lm.ngram import NGramModel
    from lm.tokenizer import Tokenizer

    names = [*units.pieces, *(f"<{name}>" for name in units.classes)]

    def sentences() -> Iterator[list[str]]:
        for index in range(len(text)):
            yield [names[i] for i in text.sentence(index).tolist()]
            if text.spans(index):
                yield [names[i] for i in text.pattern(index, units.vocab_size)]

    arpa = target.with_suffix(".arpa")
    train_arpa(sentences(), config.order, arpa, config.prune)
    if isinstance(units, Tokenizer):
        NGramModel.from_arpa(arpa, units).save(target, units)


def _train_neural(
    config: NeuralConfig,
    text: TokenText,
    dev: TokenText,
    units: Tokenizer | WordVocabulary,
    target: Path,
    training: Path,
    seed: int,
    name: str,
) -> None:
    """The weights with the lowest loss on dev are kept, entities there being classes as often as in training."""
    import torch

    from asr.data.text_batches import TextBatches, contexts_for
    from asr.training.text_loop import TextTrainer
    from lm.contextual import ContextualLM
    from lm.model_files import make_language_model, save_language_model

    torch.manual_seed(seed)
    model = make_language_model(config.kind, config.model, units, f"{name}.model")
    say(f"    {name}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters")
    contexts, dev_contexts = contexts_for(model, text), contexts_for(model, dev)
    if isinstance(model, ContextualLM) and model.takes_context and contexts is None:
        raise ConfigError(
            f"{name}: a contextual model of text without contexts", "a text in .jsonl with contexts",
            "train it with the language model recipe on such a text, or set model.how=none",
        )  # fmt: skip
    mark = fingerprint(config, text, dev, units, seed)
    put_aside(training, mark)
    batching = units.vocab_size, config.batch_tokens, config.class_rate, config.buffer, seed
    trainer = TextTrainer(
        model,
        config,
        TextBatches(text, *batching, contexts),
        TextBatches(dev, *batching, dev_contexts),
        training,
        mark,
        seed,
        "cuda" if torch.cuda.is_available() else "cpu",
    )
    with progress(f"    {name}", trainer.steps) as shown:
        trainer.on_step = shown
        model.load_state_dict(trainer.run())
    save_language_model(target, config.kind, model.config, model, units)
    say(f"    {name}: perplexity of the dev loss {math.exp(trainer.best):.2f} a token")


def fingerprint(config: NeuralConfig, text: TokenText, dev: TokenText, units: Units, seed: int) -> str:
    """Identifies what a checkpoint of a training depends on."""
    chosen = config.model_dump(mode="json")
    del chosen["checkpoint_s"]
    digest = hashlib.sha256(json.dumps([chosen, seed, units.digest], sort_keys=True).encode())
    for each in (text, dev):
        digest.update(each.digest.encode())
    return digest.hexdigest()
