"""Corpora that come as Kaldi-style folders of splits, with recordings relative to the corpus folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from asr.data.kaldi import Utterance, read_data_dir, write_data_dir
from lm.errors import DataError
from lm.tagged_text import parse
from recipes.console import say

FILES = ("wav.scp", "text", "utt2spk")


def read_split(source: Path, split: str, tag: Callable[[Utterance], str] | None = None) -> list[Utterance]:
    """Utterances of ``source/split`` by id, with nothing but ``tagged`` in ``extra``.

    Args:
        source: the corpus folder.
        split: a folder in it.
        tag: gives the tagged text of an utterance; None leaves all words plain.

    Raises:
        DataError: a file or a recording is missing, or a table is damaged.
    """
    folder = source / split
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder} has no {missing[0]}",
            f"a corpus folder whose {split} holds {', '.join(FILES)}",
            f"point --corpus to the folder that holds {split} and the recordings",
        )
    utterances = sorted(read_data_dir(folder, root=source.resolve()), key=lambda u: u.id)
    lost = [u.audio for u in utterances if not u.audio.is_file()]
    if lost:
        raise DataError(
            f"{lost[0]} and {len(lost) - 1} other recordings are missing",
            "every recording of wav.scp",
            "restore the corpus",
        )
    return [with_tags(utterance, tag) for utterance in utterances]


def with_tags(utterance: Utterance, tag: Callable[[Utterance], str] | None = None) -> Utterance:
    """The utterance with its tagged text in place of whatever is in ``extra``."""
    return replace(utterance, extra={"tagged": tag(utterance) if tag else utterance.text})


def by_speaker(utterances: Iterable[Utterance]) -> dict[str, list[Utterance]]:
    """Cut into ``dev`` and ``test`` by speaker: sorted by id, they go to dev and to test in turn.

    Raises:
        DataError: there are fewer than two speakers.
    """
    utterances = list(utterances)
    speakers = sorted({u.speaker for u in utterances})
    if len(speakers) < 2:
        raise DataError(
            f"{len(speakers)} speakers to cut into dev and test",
            "two or more",
            "take a set with more speakers",
        )
    chosen = set(speakers[::2])
    return {
        "dev": [u for u in utterances if u.speaker in chosen],
        "test": [u for u in utterances if u.speaker not in chosen],
    }


def write_splits(splits: Mapping[str, Sequence[Utterance]], data: Path, shared: bool = False) -> None:
    """Write a folder for each split and say what is in it.

    Args:
        splits: their utterances.
        data: where the folders go.
        shared: whether a speaker may be in two splits, which is said.

    Raises:
        DataError: a speaker is in two splits.
    """
    owner: dict[str, str] = {}
    for name, utterances in splits.items():
        both = sorted(s for s in {u.speaker for u in utterances} if owner.setdefault(s, name) != name)
        if both and shared:
            say(
                f"    {len(both)} speakers of {name} speak in {owner[both[0]]} too, such as {both[0]}",
                "yellow",
            )
        elif both:
            speaker = both[0]
            raise DataError(
                f"{speaker} speaks in {owner[speaker]} and in {name}",
                "speakers of their own in each split",
                "restore the corpus, or choose other parts",
            )
    for name, utterances in splits.items():
        write_data_dir(utterances, data / name)
        words = sum(len(u.text.split()) for u in utterances)
        entities = sum(len(parse(u.extra["tagged"]).entities) for u in utterances)
        tagged = f", {entities} entities" if entities else ""
        speakers = len({u.speaker for u in utterances})
        voices = f"{speakers} speaker{'s' * (speakers > 1)}"
        say(f"    {name}: {len(utterances)} utterances, {voices}, {words} words{tagged}")


def write_lm_text(lines: Iterable[str], data: Path) -> None:
    """Write ``lm_text.txt``, line by line."""
    with (data / "lm_text.txt").open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
