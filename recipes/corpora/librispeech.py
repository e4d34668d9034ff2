"""LibriSpeech (Panayotov et al. 2015) and Mini LibriSpeech as published; what is not there yet is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from asr.data.kaldi import Utterance
from lm.config import Config
from lm.errors import DataError
from recipes.console import say
from recipes.corpora.corpus import Corpus
from recipes.corpora.kaldi_source import by_speaker, with_tags, write_lm_text, write_splits

Part: TypeAlias = Literal[
    "train-clean-5",
    "dev-clean-2",
    "train-clean-100",
    "train-clean-360",
    "train-other-500",
    "dev-clean",
    "dev-other",
    "test-clean",
    "test-other",
]
Parts: TypeAlias = Annotated[tuple[Part, ...], Field(min_length=1)]


class LibrispeechConfig(Config):
    """Which parts are taken; by default those of Mini LibriSpeech."""

    train: Parts = ("train-clean-5",)
    """Parts to train on."""
    dev: Parts = ("dev-clean-2",)
    """Parts to choose settings with."""
    test: tuple[Part, ...] = ()
    """Parts to report results on; with none, the speakers of dev go to dev and test in turn."""
    download: bool = True
    """Whether parts that are not there are fetched from openslr.org."""


def prepare(source: Path, data: Path, config: LibrispeechConfig) -> None:
    """Write train, dev and test and the text for language models, which is that of train.

    ``source`` is the folder ``LibriSpeech`` with a folder for each part, or the one that holds or will hold it.

    Raises:
        DataError: a part is missing and cannot be downloaded, or has no recordings.
    """
    chosen = {"train": config.train, "dev": config.dev, "test": config.test}
    corpus = find_parts(source, [part for parts in chosen.values() for part in parts], config.download)
    splits = {name: read_parts(corpus, parts) for name, parts in chosen.items() if parts}
    if not config.test:
        splits |= by_speaker(splits["dev"])
    write_splits(splits, data)
    write_lm_text((u.text for u in splits["train"]), data)


def find_parts(source: Path, parts: Sequence[str], download: bool) -> Path:
    """The folder that holds a folder for each of ``parts``, downloaded to ``source`` where one is missing.

    Raises:
        DataError: a part is missing and may not or cannot be downloaded.
    """
    for folder in (source, source / "LibriSpeech"):
        if all((folder / part).is_dir() for part in parts):
            return folder
    held = source.parent if source.name == "LibriSpeech" else source
    lacking = [part for part in parts if not (held / "LibriSpeech" / part).is_dir()]
    by_hand = "download it by hand from openslr.org/12 (31 for Mini LibriSpeech) and unpack it there"
    if not download:
        raise DataError(f"{source} has no {lacking[0]}", "a folder for each part", by_hand)
    from lhotse.recipes.librispeech import download_librispeech

    say(f"    downloading {', '.join(lacking)} to {held}")
    try:
        found: Path = download_librispeech(held, dataset_parts=lacking)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{lacking[0]} cannot be downloaded ({reason})", "a network", by_hand) from None
    return found


def read_parts(corpus: Path, parts: Sequence[str]) -> list[Utterance]:
    """Utterances of some parts by id.

    Raises:
        DataError: a part has none.
    """
    from lhotse.recipes.librispeech import prepare_librispeech

    utterances = []
    for part, found in prepare_librispeech(corpus, dataset_parts=list(parts)).items():
        audio = {r.id: Path(r.sources[0].source).resolve() for r in found["recordings"]}
        if not audio:
            raise DataError(
                f"{corpus / part} has no recordings", "flac and trans.txt files", "unpack it again"
            )
        utterances += [
            with_tags(Utterance(s.id, audio[s.recording_id], s.text, s.speaker))
            for s in found["supervisions"]
        ]
    return sorted(utterances, key=lambda u: u.id)


CORPUS = Corpus(
    name="librispeech",
    config=LibrispeechConfig,
    prepare=prepare,
    description="prepare librispeech in {source}",
    # Not read before the run: what is not there is downloaded then, and what is published does not change.
    inputs=lambda source, config: (),
)
