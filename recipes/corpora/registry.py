"""The corpora that recipes know, by name: a new one is a file with a ``CORPUS`` and a line here."""

from __future__ import annotations

import difflib

from lm.errors import ConfigError
from recipes.corpora import an4, contacts, kathleen, librispeech, mini_librispeech, own, speechocean762
from recipes.corpora.corpus import Corpus

CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        an4.CORPUS,
        contacts.CORPUS,
        mini_librispeech.CORPUS,
        speechocean762.CORPUS,
        kathleen.CORPUS,
        librispeech.CORPUS,
        own.CORPUS,
    )
}


def find_corpus(name: str) -> Corpus:
    """The corpus ``name``.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in CORPORA:
        near = difflib.get_close_matches(name, CORPORA, n=1, cutoff=0.0)[0]
        raise ConfigError(f"corpus = {name!r}", f"one of {', '.join(CORPORA)}", f"did you mean {near!r}?")
    return CORPORA[name]
