"""``asr lm score``: perplexity of a language model on a text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asr.cli.console import put

if TYPE_CHECKING:
    from asr.data.token_text import TokenText
    from asr.scoring.perplexity import SentenceScores
    from lm.tokenizer import Tokenizer
    from lm.utterance_context import UtteranceContext
    from lm.vocabulary import WordVocabulary


TextKey = Annotated[str, typer.Option(metavar="KEY", help="In .jsonl: the key of the sentence.")]
ContextFields = Annotated[
    str,
    typer.Option(
        metavar="KEYS", help="In .jsonl: fields of the context, 'app,hour', if not in its 'context'."
    ),
]


def score(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help=".safetensors, .arpa or KenLM; or a recognizer's folder.",
            show_default=False,
        ),
    ],
    text: Annotated[
        Path,
        typer.Argument(
            metavar="TEXT",
            help="A sentence a line, or in .jsonl one and its context; .gz and .xz too.",
            show_default=False,
        ),
    ],
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Tokenizer, or the folder it is in; that beside the model if not given."),
    ] = None,
    words: Annotated[bool, typer.Option("--words", help="The ARPA or KenLM file is over words.")] = False,
    ids: Annotated[bool, typer.Option("--ids", help="Each line begins with an utterance id.")] = False,
    text_key: TextKey = "text",
    context_fields: ContextFields = "",
) -> None:
    """Perplexity a word and a token, with 95 % intervals of a bootstrap over sentences.

    A contextual model is asked with the context of each sentence, which .jsonl tells. Says whether ends of
    sentences are counted, and how many words the model does not know. Of a recognizer it is the internal language
    model: what it expects when nothing is heard (the vocabulary predictor of an FNT; ILME for the others).

    Examples:

    \b
      asr lm score exp/books_text-lstm/lstm.safetensors dev.txt.xz
      asr lm score words.arpa dev.txt.xz --words
      asr lm score exp/an4-aed/model dev.txt.xz

    \b
      asr lm score contextual.safetensors devel.jsonl --text-key sentence --context-fields scenario
    """
    from asr.scoring.perplexity import perplexity, score_words
    from lm.word_ngram import load_word_lm

    _check_model(model, tokenizer, words)
    said = _said(text, ids, text_key, context_fields)
    if words:
        lines = [sentence for sentence, _ in said]
        found = {"as spoken, ends of sentences counted": score_words(load_word_lm(model), lines)}
    else:
        found = _score_tokens(model, text, said, _units(model, tokenizer))
    for how, scores in found.items():
        put(f"{how}\n{perplexity(scores).to_text()}")


def _check_model(model: Path, tokenizer: Path | None, words: bool) -> None:
    from lm.errors import ConfigError, DataError

    if not model.exists():
        raise DataError(
            f"{model}: no such file or folder", "a language model, or a recognizer's folder", "correct it"
        )
    if model.is_dir() and (words or tokenizer is not None):
        given = "--words" if words else "--tokenizer"
        raise ConfigError(
            f"{given} with the folder {model}", "neither", "a recognizer brings its own subwords"
        )
    if words and tokenizer is not None:
        raise ConfigError("--words with --tokenizer", "one of them", "words need no tokenizer: leave it out")


def _score_tokens(
    model: Path, text: Path, said: Iterator[tuple[str, UtteranceContext]], units: Tokenizer | WordVocabulary
) -> dict[str, SentenceScores]:
    from itertools import tee
    from tempfile import TemporaryDirectory

    from asr.data.token_text import TokenText, describe_text, encode_text
    from asr.scoring.perplexity import score_file
    from lm.text_files import is_jsonl

    with TemporaryDirectory() as scratch:
        one, other = tee(said)
        contexts = (context for _, context in other) if is_jsonl(text) else None
        summary = encode_text((line for line, _ in one), units, Path(scratch) / "text", contexts)
        put(f"{text.name}: {describe_text(summary, units)}")
        encoded = TokenText(Path(scratch) / "text")
        if model.is_dir():
            return {"internal language model, ends of sentences not counted": _internal(model, encoded)}
        return score_file(model, encoded, units)


def _internal(folder: Path, text: TokenText) -> SentenceScores:
    from asr.recognizer import Recognizer
    from asr.scoring.internal import score_internal

    return score_internal(Recognizer.load(folder), text)


def _units(model: Path, given: Path | None) -> Tokenizer | WordVocabulary:
    """Those given, those in the model's file, or those beside it."""
    from lm.errors import ConfigError
    from lm.model_files import vocabulary_of
    from lm.vocabulary import TOKENIZER, WORDS, load_units

    if given is not None:
        return load_units(given)
    if model.suffix == ".safetensors" and (own := vocabulary_of(model)) is not None:
        return own
    if model.is_dir():
        return load_units(model)
    places = [f / name for f in (model.parent, model.parent.parent) for name in (TOKENIZER, WORDS)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ConfigError(
            f"{model} without a {TOKENIZER} beside it", "--tokenizer FILE", "or --words for one over words"
        )
    return load_units(found)


def _said(path: Path, ids: bool, text_key: str, fields: str) -> Iterator[tuple[str, UtteranceContext]]:
    """Sentences and what is known of where each was said."""
    from lm.errors import ConfigError
    from lm.text_files import is_jsonl, read_lines
    from lm.utterance_context import said_in

    lines = read_lines(path)
    if not is_jsonl(path) and (text_key != "text" or fields):
        raise ConfigError(
            f"--text-key or --context-fields with {path.name}", "a .jsonl file", "leave them out"
        )
    if is_jsonl(path):
        return said_in(path, lines, text_key, [f.strip() for f in fields.split(",")] if fields else "context")
    return ((line.partition(" ")[2] if ids else line, {}) for line in lines)
