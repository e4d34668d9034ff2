"""Error rates of factorized transducers, adapted or not, on the test set of a recipe's work folder.

    OMP_NUM_THREADS=1 python tests/benchmarks/adapted.py exp/families/fnt-s1 exp/families/fnt-s1/model exp/adapted

Each is searched without lists and with them as classes, each recording with its own where the corpus has such;
weights are tuned on dev by WER. Prints a row a model and search: weights, WER on dev, WER on test with its 95 %
bootstrap interval.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from asr.recognizer import Recognizer
from asr.scoring.score import score
from lm.config import read_yaml
from recipes.corpora.lists import list_files, read_lists
from recipes.evaluate import audio_of, references_of
from recipes.train import Layout

GRIDS: dict[str, dict[str, list[float]]] = {
    "none": {"lm_scale": [0.3, 0.5, 0.7, 1.0]},
    "classes": {"lm_scale": [0.5, 0.7, 1.0], "class_bonus": [0.0, 2.0, 4.0]},
}


class Searched:
    """The recordings of a work folder, their references and lists."""

    def __init__(self, folder: Layout) -> None:
        kinds = ("utterance", "corpus")
        kind = next((k for k in kinds if list_files(k, folder.data, "test")[0].is_file()), "none")
        self._folder = folder
        self._lists = {split: read_lists(kind, folder.data, split) for split in ("dev", "test")}

    def rate(self, recognizer: Recognizer, split: str, settings: dict[str, Any]) -> Any:
        """Errors on a split."""
        audio, lists = audio_of(self._folder, split), self._lists[split]
        options = recognizer.decoding.changed(settings, "the grid")
        found = {}
        for first in range(0, len(audio), 16):
            names = list(audio)[first : first + 16]
            own = [lists[name] for name in names] if isinstance(lists, dict) else lists
            entities = own if settings["biasing"] == "classes" else None
            results = recognizer.transcribe([audio[n] for n in names], entities=entities, options=options)
            found |= dict(zip(names, results, strict=True))
        return score(references_of(self._folder, split), found, None).wer.rate


def main() -> int:
    """Search and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=Path, help="work folder of a recipe whose data stage ran")
    parser.add_argument("models", type=Path, nargs="+", help="model folders")
    given = parser.parse_args()
    torch.set_num_threads(1)
    searched = Searched(Layout(given.workdir))
    for model in given.models:
        if read_yaml(model / "config.yaml")["family"] != "factorized":
            print(f"{model}: not a factorized transducer", file=sys.stderr)
            return 2
        recognizer = Recognizer.load(model)
        for biasing, grid in GRIDS.items():
            tried = [
                dict(zip(grid, values, strict=True)) | {"biasing": biasing}
                for values in itertools.product(*grid.values())
            ]
            dev = [searched.rate(recognizer, "dev", settings).value for settings in tried]
            chosen = tried[dev.index(min(dev))]
            test = searched.rate(recognizer, "test", chosen)
            wer = f"{100 * test.value:.1f} [{100 * test.low:.1f}, {100 * test.high:.1f}]"
            print(f"{model} {chosen} dev {100 * min(dev):.1f} test {wer} %", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
