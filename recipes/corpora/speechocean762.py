"""speechocean762 (Zhang et al., Interspeech 2021): English sentences read by learners, half of them children.

The original test speakers that are at hand become dev and test, in turn by speaker id.
"""

from __future__ import annotations

from pathlib import Path

from lm.config import Config
from recipes.corpora.corpus import Corpus
from recipes.corpora.kaldi_source import by_speaker, read_split, write_lm_text, write_splits


class SpeechoceanConfig(Config):
    """Nothing to set."""


def prepare(source: Path, data: Path, config: SpeechoceanConfig) -> None:
    """Write train, dev and test and the text for language models, which is that of train.

    Raises:
        DataError: ``source`` is not the corpus.
    """
    train = read_split(source, "train")
    write_splits({"train": train, **by_speaker(read_split(source, "dev"))}, data)
    write_lm_text((u.text for u in train), data)


CORPUS = Corpus(
    name="speechocean762",
    config=SpeechoceanConfig,
    prepare=prepare,
    description="prepare speechocean762 from {source}",
    inputs=lambda source, config: (source / "train", source / "dev"),
)
