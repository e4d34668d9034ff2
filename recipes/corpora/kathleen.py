"""kathleen: CMU ARCTIC sentences by one speaker, full of names of people and places. A test set only.

Proper names are one class, and the list holds all names of the set. As the set is for models trained elsewhere, the
class bears whatever name the model knows.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import Field

from asr.data.kaldi import Utterance
from lm.config import Config
from lm.errors import DataError
from lm.tagged_text import Segment, TaggedText, parse, render
from recipes.corpora.corpus import Corpus
from recipes.corpora.kaldi_source import read_split, write_splits
from recipes.corpora.lists import list_files


class KathleenConfig(Config):
    """What the names are."""

    class_name: str = Field("rare", pattern="^[a-z][a-z0-9_]*$")
    """Their class, one that the model to be tested knows."""


def prepare(source: Path, data: Path, config: KathleenConfig) -> None:
    """Write ``test`` and ``entities.yaml``.

    Raises:
        DataError: ``source`` is not the corpus.
    """
    import yaml

    names = read_names(source / "dev" / "entities.jsonl")

    def tag(utterance: Utterance) -> str:
        return render(tag_names(utterance.text, names.get(utterance.id, []), config.class_name))

    test = read_split(source, "dev", tag)
    write_splits({"test": test}, data)
    entries = sorted({text for u in test for _, text, _, _ in parse(u.extra["tagged"]).entities})
    (target,) = list_files("corpus", data, "test")
    target.write_text(yaml.safe_dump({config.class_name: entries}, width=1000), encoding="utf-8")


def read_names(path: Path) -> dict[str, list[str]]:
    """Names by utterance id, in the order of the text.

    Raises:
        DataError: the file is missing or a line is not as published.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {row["id"]: [entity["norm"] for entity in row["entities"]] for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: {error!r}", "the list of names of the corpus", "restore the corpus"
        ) from None


def tag_names(text: str, names: list[str], class_name: str) -> TaggedText:
    """Mark names where they stand, each after the one before it.

    Raises:
        DataError: a name does not stand in the text.
    """
    words = text.split()
    segments: list[Segment] = []
    done = 0
    for name in names:
        wanted = name.split()
        starts = range(done, len(words) - len(wanted) + 1)
        start = next((i for i in starts if words[i : i + len(wanted)] == wanted), None)
        if start is None or not wanted:
            raise DataError(f"name {name!r} with text {text!r}", "a name that is in it", "restore the corpus")
        if start > done:
            segments.append(Segment(" ".join(words[done:start])))
        segments.append(Segment(" ".join(wanted), class_name))
        done = start + len(wanted)
    if done < len(words):
        segments.append(Segment(" ".join(words[done:])))
    return TaggedText(tuple(segments))


CORPUS = Corpus(
    name="kathleen",
    config=KathleenConfig,
    prepare=prepare,
    description="prepare kathleen from {source}",
    inputs=lambda source, config: (source / "dev",),
    splits=("test",),
    lists="corpus",
)
