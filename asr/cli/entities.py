"""Lists of names, as a command is told them: one for all recordings, or one for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from asr.cli.console import say
from lm.errors import EntityListError

if TYPE_CHECKING:
    from asr.decoding_config import DecodingConfig
    from asr.recognizer import Recognizer
    from asr.recordings import AudioPart, Recording
    from lm.classes import EntityCatalog

HELP = "Names to recognise, by class: yaml, jsonl, csv, txt; or lists by recording: jsonl."


@dataclass(frozen=True)
class GivenEntities:
    """``lists`` as ``Recognizer.transcribe_many`` takes them; ``mark`` tells their content."""

    lists: EntityCatalog | Mapping[Path | AudioPart, EntityCatalog] | None = None
    mark: str | None = None

    @classmethod
    def read(cls, path: Path | None, recordings: Sequence[Recording]) -> GivenEntities:
        """Read what ``--entities`` names; says how many recordings it leaves out.

        Raises:
            EntityListError: what is wrong with a list.
            DataError: lists of none of the recordings, or two lists of one file.
        """
        from asr.cli.contexts import by_path
        from lm.classes import EntityCatalog
        from lm.own_lists import fingerprint, read_entities

        if path is None:
            return cls()
        found = read_entities(path)
        if isinstance(found, EntityCatalog):
            return cls(found, found.fingerprint() if found else None)
        return cls(by_path(found, recordings, path, "lists"), fingerprint(found))

    def check(self, recognizer: Recognizer, options: DecodingConfig) -> dict[str, int] | None:
        """How many entries fare how in the model; says what is wrong with them. None without lists.

        Also says what of them ``options`` have no use for.

        Raises:
            EntityListError: the one list cannot be used. A recording's own ends that recording alone, later.
        """
        if not self.lists:
            return None
        several = list(self.lists.values()) if isinstance(self.lists, Mapping) else [self.lists]
        _warn_of_unused(several, recognizer.biasing(options))
        if not isinstance(self.lists, Mapping):
            report = recognizer.report(self.lists, options)
            counts = report.counts()
            if counts["partly"] or counts["failed"]:
                say(f"warning: {report.summary()}; asr classes shows them all")
            return counts
        counts = {"ok": 0, "partly": 0, "failed": 0}
        for catalog in {each.fingerprint(): each for each in several if each}.values():
            try:
                for status, count in recognizer.report(catalog, options).counts().items():
                    counts[status] += count
            except EntityListError:
                continue
        if counts["partly"] or counts["failed"]:
            say(
                f"warning: {counts['failed']} entries of the lists cannot be recognised, {counts['partly']} partly"
            )
        return counts


def _warn_of_unused(catalogs: Sequence[EntityCatalog], biasing: str) -> None:
    if biasing == "none":
        say("warning: biasing is none, so the lists are not used; --set biasing=auto uses them")
    if biasing == "phrases" and any(kind.cost for each in catalogs for kind in each.classes.values()):
        say("warning: the lists are used as phrases, where costs of classes have no part")
