"""Utterances as lhotse cuts, and back from disk.

A cut carries all of an `Utterance`: its part of a recording, one supervision with text and speaker, and the
extra fields in ``supervision.custom`` (class-tagged text is ``custom["tagged"]``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr.audio import MIN_S, AudioInfo, audio_info
from asr.data.kaldi import Utterance
from lm.errors import AudioError, DataError

if TYPE_CHECKING:
    from lhotse import CutSet

_END_SLACK_S = 0.05  # segment tables round their times


@dataclass(frozen=True)
class Problem:
    """An utterance that was left out, and why."""

    id: str
    error: AudioError


def to_cuts(utterances: Iterable[Utterance]) -> tuple[CutSet, list[Problem]]:
    """Turn utterances into cuts with durations from the audio; bad recordings are left out and listed.

    Each header is read once, and the last sample of each recording is tried; see `asr.audio.audio_info`.

    Returns:
        (cuts, problems), both in the order of ``utterances``.

    Raises:
        DataError: an id is there twice.
    """
    from lhotse import CutSet

    seen: dict[Path, AudioInfo | AudioError] = {}
    cuts: dict[str, Any] = {}
    problems: list[Problem] = []
    names: set[str] = set()
    for item in utterances:
        if item.id in names:
            raise DataError(f"utterance {item.id!r} a second time", "each id once", "rename one of them")
        names.add(item.id)
        if item.audio not in seen:
            seen[item.audio] = _look(item.audio)
        info = seen[item.audio]
        try:
            if isinstance(info, AudioError):
                raise info
            cuts[item.id] = _cut(item, info)
        except AudioError as error:
            problems.append(Problem(item.id, error))
    return CutSet.from_cuts(cuts.values()), problems


def save_cuts(cuts: CutSet, path: Path) -> None:
    """Write cuts as ``....jsonl.gz``."""
    if not path.name.endswith(".jsonl.gz"):
        raise DataError(f"a manifest named {path.name!r}", "a name like cuts.jsonl.gz", "rename it")
    path.parent.mkdir(parents=True, exist_ok=True)
    cuts.to_file(path)


def load_cuts(path: Path) -> CutSet:
    """Read the cuts that `save_cuts` wrote, all into memory.

    Raises:
        DataError: the file is missing or is not a manifest of cuts.
    """
    from lhotse import CutSet

    if not path.is_file():
        raise DataError(
            f"{path} does not exist", "a manifest such as cuts.jsonl.gz", "prepare the data first"
        )
    try:
        cuts = CutSet.from_file(path).to_eager()
        cuts = cuts if isinstance(cuts, CutSet) else None
    except Exception:  # lhotse lets whatever json, gzip or its classes raise through
        cuts = None
    if cuts is None or not len(cuts):
        raise DataError(
            f"{path} is damaged, empty or not a manifest of cuts", "lhotse cuts", "prepare the data again"
        )
    return cuts


def _look(path: Path) -> AudioInfo | AudioError:
    try:
        return audio_info(path)
    except AudioError as error:
        return error


def _cut(item: Utterance, info: AudioInfo) -> Any:
    from lhotse import AudioSource, MonoCut, MultiCut, Recording, SupervisionSegment

    end_s = info.duration_s if item.end_s is None else min(item.end_s, info.duration_s)
    duration_s = end_s - item.start_s
    if duration_s < MIN_S or (item.end_s or 0.0) > info.duration_s + _END_SLACK_S:
        part = f"{item.audio}: the part from {item.start_s} s to {item.end_s or info.duration_s:.6g} s"
        expected = f"at least 25 ms inside its {info.duration_s:.2f} s"
        raise AudioError(part, expected, "correct the segment, or leave the utterance out")
    channels = list(range(info.channels))
    recording = Recording(
        id=str(item.audio),
        sources=[AudioSource(type="file", channels=channels, source=str(item.audio))],
        sampling_rate=info.sample_rate,
        num_samples=round(info.duration_s * info.sample_rate),
        duration=info.duration_s,
    )
    channel = 0 if info.channels == 1 else channels
    supervision = SupervisionSegment(
        id=item.id,
        recording_id=recording.id,
        start=0.0,
        duration=duration_s,
        channel=channel,
        text=item.text,
        speaker=item.speaker,
        custom=dict(item.extra) or None,
    )
    kind = MonoCut if info.channels == 1 else MultiCut
    return kind(
        id=item.id,
        start=item.start_s,
        duration=duration_s,
        channel=channel,
        supervisions=[supervision],
        recording=recording,
    )
