"""``asr adapt``: a factorized transducer learns the words of a text, without recordings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asr.cli.console import Bar, put, say
from asr.cli.transcribe import Device, Model, load_recognizer
from lm.errors import ConfigError

if TYPE_CHECKING:
    from asr.data.token_text import TokenText
    from asr.recognizer import Recognizer
    from asr.training.adaptation import AdaptationConfig, Adapted

HELD_OUT = 10
"""Without a dev text, one sentence of so many is kept apart to choose the weights with."""


def adapt(
    text: Annotated[
        Path,
        typer.Argument(
            metavar="TEXT",
            help="A sentence a line, class tags as in `<contact>ann</contact>`; .gz and .xz too.",
            show_default=False,
        ),
    ],
    model: Model,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the new model.", show_default=False)
    ],
    dev: Annotated[
        Path | None,
        typer.Option(metavar="TEXT", help="Text to choose the weights with; every tenth line if not given."),
    ] = None,
    general: Annotated[
        Path | None,
        typer.Option(metavar="TEXT", help="Text of the kind the model knew: how much of it is forgotten?"),
    ] = None,
    kl: Annotated[
        float,
        typer.Option(
            min=0, max=0.99, help="How much the model stays what it was: 0 not at all, 0.9 hardly moves."
        ),
    ] = 0.3,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the text.")] = 5,
    peak_lr: Annotated[float, typer.Option(help="Learning rate.")] = 5e-4,
    class_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the entities that are learned as their class.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="Of batches and dropout.")] = 0,
    device: Device = "cpu",
) -> None:
    """Teach a factorized transducer (FNT, C-FNT, MHAT) the words of a text, without recordings.

    Only its vocabulary predictor, a language model, is trained; what it makes of sound stays. Prints perplexities
    before and after; if the dev text is none the likelier, the model is written as it was. A call that was stopped
    goes on when it is run again. Afterwards `asr tune` finds the weights of its language model anew.

    Examples:

    \b
      asr adapt requests.txt --model exp/model --out exp/model-requests
      asr adapt requests.txt --dev dev.txt --general old.txt --kl 0.5 --model exp/model --out exp/adapted
    """
    from asr.training.adaptation import AdaptationConfig, vocabulary_predictor
    from lm.config import build_config

    _check_out(out, model)
    given = {"kl_weight": kl, "epochs": epochs, "peak_lr": peak_lr, "class_rate": class_rate}
    config = build_config(AdaptationConfig, given, "asr adapt")
    recognizer = load_recognizer(model, device)
    vocabulary_predictor(recognizer)
    place = out.with_name(f"{out.name}-training")
    texts = _encode(recognizer, text, dev, general, place)
    found = _adapt(recognizer, model, texts, config, place, seed)
    _save(model, recognizer, out, text, found, kl)
    say(f"wrote {out}; curves and checkpoints are in {place}")


def _check_out(out: Path, model: Path) -> None:
    """Say before the training what cannot be written behind it."""
    from asr.bundle import check_target

    if out.resolve() == model.resolve():
        raise ConfigError(f"--out {out}, the model itself", "another folder", "name a new one")
    check_target(out)


def _adapt(
    recognizer: Recognizer,
    model: Path,
    texts: Mapping[str, TokenText],
    config: AdaptationConfig,
    place: Path,
    seed: int,
) -> Adapted:
    """Train the predictor of a recognizer, and print what became of the perplexities."""
    from asr.bundle import bundle_fingerprint
    from asr.training.adaptation import Adaptation

    judged = {name: each for name, each in texts.items() if name != "text"}
    before = {name: _perplexities(recognizer, each) for name, each in judged.items()}
    parts = recognizer, texts["text"], texts["dev"], config, place, bundle_fingerprint(model), seed
    training = Adaptation(*parts)
    with Bar(training.steps, training.steps) as bar:
        found = training.run(bar.reach)
    for name, each in judged.items():
        after = _perplexities(recognizer, each)
        for how, figure in before[name].items():
            put(f"{name}, {how}: perplexity a word {figure} before, {after[how]} after")
    if not found.better:
        say("the dev text became no likelier: the new model is the old one")
    return found


def _encode(
    recognizer: Recognizer, text: Path, dev: Path | None, general: Path | None, place: Path
) -> dict[str, TokenText]:
    """The texts in the model's tokens."""
    from asr.data.token_text import TokenText, describe_text, encode_text
    from lm.text_files import read_lines

    def part(held_out: bool) -> Iterator[str]:
        for number, line in enumerate(line for line in read_lines(text) if line.strip()):
            if (number % HELD_OUT == HELD_OUT - 1) == held_out:
                yield line

    lines = {"text": read_lines(text) if dev else part(False), "dev": read_lines(dev) if dev else part(True)}
    if general:
        lines["general"] = read_lines(general)
    found = {}
    for name, each in lines.items():
        summary = encode_text(each, recognizer.tokenizer, place / "tokens" / name)
        say(f"{name}: {describe_text(summary, recognizer.tokenizer)}")
        found[name] = TokenText(place / "tokens" / name)
    if recognizer.tokenizer.classes and not found["text"].summary.entities:
        say(
            f"warning: {text.name} has no class tags: from it the model learns that names of classes are rare"
        )
    return found


def _perplexities(recognizer: Recognizer, text: TokenText) -> dict[str, str]:
    """Perplexity a word with its interval: as spoken and, where there are entities, with them as classes."""
    from asr.scoring.perplexity import perplexity, score_neural
    from asr.training.adaptation import vocabulary_predictor

    predictor, found = vocabulary_predictor(recognizer), {}
    for classes in (False, True) if text.summary.entities else (False,):
        figure = perplexity(score_neural(predictor, text, recognizer.tokenizer, classes)).word
        how = "entities as classes" if classes else "as spoken"
        found[how] = f"{figure.value:.1f} [{figure.low:.1f}, {figure.high:.1f}]"
    return found


def _save(model: Path, recognizer: Recognizer, out: Path, text: Path, found: Adapted, kl: float) -> None:
    """The model folder with its new weights, and all else it had."""
    from asr.bundle import load_bundle, save_bundle

    bundle = load_bundle(model)
    digest = hashlib.sha256(text.read_bytes()).hexdigest()[:12]
    nats = " to ".join(f"{each:.3f}" for each in found.losses)
    readme = (model / "README.md").read_text() if (model / "README.md").is_file() else "# Vocative model\n"
    readme += f"\nPredictor adapted to {text.name} ({digest}), KL weight {kl}: {nats} nats a token on dev.\n"
    extra = {
        str(path.relative_to(model)): path.read_bytes()
        for name in ("classes", "lm")
        for path in sorted((model / name).glob("*"))
        if path.is_file()
    }
    tensors = recognizer.family.model.state_dict()
    save_bundle(out, bundle.config, tensors, bundle.tokenizer_path.read_bytes(), readme, extra=extra)
