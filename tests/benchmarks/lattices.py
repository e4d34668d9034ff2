"""How much a lattice holds beside the n-best list: oracle word error rates and second passes on real speech.

    python tests/benchmarks/lattices.py exp/an4-ctc [--lm transformer] [--weight 0.3]

DIR is a recipe's work folder; its test set is decoded with its model, without lists. No bars: it prints the
oracle of the 8-best list and of the lattice, the sequences of a lattice and the seconds it takes to read one, and
with a language model of the model folder the error rate of a second pass over either, with intervals.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from asr.recognizer import Recognizer
from asr.scoring.bootstrap import Bootstrap, ratio
from asr.scoring.errors import Counts, word_errors
from asr.scoring.measure import error_columns
from decoding.lattice import Lattice
from decoding.oracle import lattice_word_oracle
from decoding.result import Transcript

MOST = 1000
"""Sequences of a lattice that are counted."""


def main() -> None:
    """Decode, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lm", default="")
    parser.add_argument("--weight", type=float, default=0.3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recognizer = Recognizer.load(arguments.folder / "model")
    from asr.data.kaldi import read_table

    said = {name: text.upper() for name, text in read_table(arguments.folder / "data/test/text").items()}
    paths = dict(read_table(arguments.folder / "data/test/wav.scp"))
    measure_oracles(recognizer, paths, said)
    if arguments.lm:
        second_passes(recognizer, paths, said, arguments.lm, arguments.weight)


def measure_oracles(recognizer: Recognizer, paths: dict[str, str], said: dict[str, str]) -> None:
    """Oracle error rates of the n-best lists and of the lattices."""
    options = plain(recognizer, {})
    found: dict[str, tuple[Transcript, Lattice]] = {}
    began = time.monotonic()
    for name, path in paths.items():
        ((transcript, lattices),) = recognizer.lattices([Path(path)], options=options)
        assert lattices[0] is not None, name
        found[name] = (transcript, lattices[0])
    took_s = time.monotonic() - began
    tokenizer = recognizer.tokenizer

    def words(tokens: Any) -> list[str]:
        return [word for word, _, _ in tokenizer.words(tokens)]

    best = [word_errors(said[n], found[n][0].text) for n in paths]
    listed = [
        min((word_errors(said[n], h.text) for h in found[n][0].hypotheses), key=lambda c: c.errors)
        for n in paths
    ]
    starts = tokenizer.starts_word.tolist()
    held = []
    for name in paths:
        reference = said[name].split()
        oracle = lattice_word_oracle(found[name][1], reference, words, starts)
        held.append(Counts(sub=oracle.errors, ref=len(reference)))
    sizes = sorted(len(found[n][1].nbest(MOST)) for n in paths)
    lists = sorted(len(found[n][0].hypotheses) for n in paths)
    show("best hypothesis", best)
    show("n-best oracle", listed)
    show("lattice oracle", held)
    middle = len(sizes) // 2
    print(
        f"sequences: {lists[middle]} in the median list, {sizes[middle]} in the median lattice (counted to {MOST})"
    )
    print(f"{took_s / len(paths):.3f} s a recording with its lattice, one by one")


def second_passes(
    recognizer: Recognizer, paths: dict[str, str], said: dict[str, str], lm: str, weight: float
) -> None:
    """Error rates of a second pass over the list and over the lattice."""
    for over in ("nbest", "lattice"):
        options = plain(recognizer, {"rescoring": {"lm": lm, "weight": weight, "over": over}})
        began = time.monotonic()
        results = recognizer.transcribe_many([Path(p) for p in paths.values()], options=options)
        errors = []
        for name, (_, result) in zip(paths, results, strict=True):
            assert isinstance(result, Transcript), result
            errors.append(word_errors(said[name], result.text))
        show(f"{lm} over the {over}", errors, f"{time.monotonic() - began:.1f} s")


def plain(recognizer: Recognizer, changes: dict[str, Any]) -> Any:
    """The model's settings without lists or language models."""
    bare = {
        "biasing": "none",
        "fusion": {"lm": "", "internal": "none", "internal_lm": ""},
        "rescoring": {"lm": ""},
    }
    return recognizer.decoding.changed(bare, "benchmark").changed(changes, "benchmark")


def show(name: str, each: list[Counts], more: str = "") -> None:
    """One line with its interval."""
    interval = Bootstrap(len(each)).interval(error_columns(each), ratio)
    value, low, high = (100 * x for x in (interval.value, interval.low, interval.high))
    print(f"{name:26s} {value:6.2f} % [{low:.2f}, {high:.2f}]  {more}")


if __name__ == "__main__":
    main()
