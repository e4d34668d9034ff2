"""Language models of a recipe: trained on the corpus's text, judged on dev."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.config import NeuralConfig, NGramConfig, RecipeConfig
from recipes.console import progress, say
from recipes.train import Layout

if TYPE_CHECKING:
    from torch import Tensor

    from asr.data.examples import Example
    from lm.language_model import ContextStore, LanguageModel
    from lm.tokenizer import Tokenizer


def make_language_models(config: RecipeConfig, folder: Layout) -> None:
    """Train every language model of the recipe and say what it makes of dev."""
    from asr.data.examples import Example
    from asr.data.kaldi import read_table
    from lm.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(folder.tokenizer)
    lines = [line for line in (folder.data / "lm_text.txt").read_text().splitlines() if line.strip()]
    text = [Example.from_text(f"text-{i}", line, tokenizer) for i, line in enumerate(lines)]
    tagged = read_table(folder.data / "dev" / "tagged")
    dev = [Example.from_text(name, line, tokenizer) for name, line in tagged.items()]
    for name, settings in config.language_models.items():
        target = folder.language_model(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(settings, NGramConfig):
            contexts = _train_ngram(settings, text, tokenizer, target)
        else:
            contexts = _train_neural(name, settings, text, dev, tokenizer, target, config.training.seed)
        rates = [_perplexity(contexts, dev, tokenizer.vocab_size, classes) for classes in (False, True)]
        say(
            f"    {name}: perplexity on dev {rates[0]:.2f} a token as spoken, {rates[1]:.2f} with entities as "
            "classes; ends of sentences not counted"
        )


def _train_ngram(
    config: NGramConfig, text: Sequence[Example], tokenizer: Tokenizer, target: Path
) -> ContextStore:
    """Sentences count once as spoken and, if there are entities in them, once with their classes."""
    from lm.kneser_ney import train_arpa
    from lm.ngram import NGramModel

    names = [*tokenizer.pieces, *(f"<{name}>" for name in tokenizer.classes)]
    sentences = [[names[i] for i in e.labels] for e in text]
    whole = [e.pattern(tokenizer.vocab_size, [True] * len(e.spans)) for e in text if e.spans]
    sentences += [[names[i] for i in tokens] for tokens in whole]
    arpa = target.with_suffix(".arpa")
    train_arpa(sentences, config.order, arpa)
    model = NGramModel.from_arpa(arpa, tokenizer)
    model.save(target, tokenizer)
    return model.contexts()


def _train_neural(
    name: str,
    config: NeuralConfig,
    text: Sequence[Example],
    dev: Sequence[Example],
    tokenizer: Tokenizer,
    target: Path,
    seed: int,
) -> ContextStore:
    """AdamW with a short rise and a half cosine; entities become their class at random; the best epoch is kept."""
    import torch

    from lm.model_files import load_language_model, make_language_model, save_language_model

    torch.manual_seed(seed)
    model = make_language_model(config.kind, config.model, tokenizer, f"language_models.{name}.model")
    draw = random.Random(seed)
    batches = _batches(text, config.batch_tokens)
    steps = config.epochs * len(batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.peak_lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    best = math.inf
    with progress(f"    {name}", steps) as shown:
        for epoch in range(config.epochs):
            draw.shuffle(batches)
            for number, batch in enumerate(batches, start=1):
                rows = [
                    e.pattern(tokenizer.vocab_size, [draw.random() < config.class_rate for _ in e.spans])
                    for e in batch
                ]
                loss = _cross_entropy(model, rows)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                shown(epoch * len(batches) + number)
            model.eval()
            with torch.no_grad():
                found = _perplexity(model.contexts(), dev, tokenizer.vocab_size, False)
            if found < best:
                best = found
                save_language_model(target, config.kind, model.config, model, tokenizer)
            model.train()
    return load_language_model(target, tokenizer).contexts()


def _rate(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)


def _batches(text: Sequence[Example], tokens: int) -> list[list[Example]]:
    """Sentences of like length together."""
    batches: list[list[Example]] = []
    room = 0
    for example in sorted((e for e in text if e.labels), key=lambda e: len(e.labels)):
        if room < len(example.labels):
            batches.append([])
            room = tokens
        batches[-1].append(example)
        room -= len(example.labels)
    return batches


def _cross_entropy(model: LanguageModel, rows: Sequence[Sequence[int]]) -> Tensor:
    import torch

    tokens = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=-1
    )
    logits = model(tokens.clamp_min(0))[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), ignore_index=-1)


def _perplexity(contexts: ContextStore, text: Sequence[Example], num_tokens: int, classes: bool) -> float:
    """Per token; over V and the classes' odds where entities are classes, over V where they are words."""
    import torch

    total, count = 0.0, 0
    with torch.no_grad():
        for example in text:
            state = contexts.start(1)
            row = example.pattern(num_tokens, [classes] * len(example.spans))
            for token in row:
                logp = contexts.score(state)[0]
                logp = logp.log_softmax(-1) if classes else logp
                total -= float(logp[token])
                state = contexts.advance(state, torch.tensor([token]))
            count += len(row)
    return math.exp(total / max(count, 1))
