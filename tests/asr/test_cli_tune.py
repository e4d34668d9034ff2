"""``asr tune`` on a scripted recognizer: what it searches, keeps, chooses, writes and refuses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

import asr.cli.tune
from asr.bundle import save_bundle
from asr.cli.main import build_app
from asr.decoding_config import DecodingConfig
from decoding.result import Hypothesis, Transcript, Word
from lm.errors import AudioError, VocativeError


class Models:
    def add(self, name: str, path: Path) -> None: ...

    def get(self, name: str) -> None: ...


class Scripted:
    """Shaped like a recognizer of a CTC model; it is right once the language model weighs more than 0.5."""

    def __init__(self) -> None:
        self.decoding = DecodingConfig()
        self.family = type("Plain", (), {"knows_classes": False})()
        self.language_models = Models()
        self.searches: list[float] = []
        self.heard_in: list[Any] = []

    def biasing(self, options: DecodingConfig) -> str:
        return "classes" if options.fusion.lm else "phrases"

    def transcribe_many(
        self, paths: Sequence[Path], *, entities: Any, contexts: Any, batch_s: float, options: DecodingConfig
    ) -> Iterator[tuple[Path, Transcript | VocativeError]]:
        self.searches.append(options.fusion.weight)
        self.heard_in.append({path.stem: said for path, said in contexts.items()})
        for path in paths:
            if path.read_bytes() == b"broken":
                yield path, AudioError(f"{path} is broken", "a recording", "check it")
                continue
            weight, bonus = options.fusion.weight, options.label_bonus
            nbest = []
            for text, model, lm in ((path.stem, -4.0, -1.0), ("wrong", -3.0, -3.0)):
                parts = {"model": model, "lm": weight * lm, "length": bonus}
                word = Word(text, 0.0, 0.5, 0.5)
                nbest.append(Hypothesis(text, sum(parts.values()), parts, (word,), ()))
            nbest.sort(key=lambda h: -h.score)
            yield path, Transcript(path.stem, nbest[0].text, 1.0, nbest[0].words, (), tuple(nbest))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    recognizer = Scripted()
    monkeypatch.setattr(asr.cli.tune, "load_recognizer", lambda *args: recognizer)
    return recognizer


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    (tmp_path / "dev").mkdir()
    for name in ("ann", "ben", "cat", "dan"):
        (tmp_path / "dev" / f"{name}.wav").write_bytes(b"sound")
    # The last two nobody could recognise.
    (tmp_path / "dev.txt").write_text("ann ann\nben ben\ncat else\ndan else\n")
    (tmp_path / "lm.arpa").write_text("")
    save_bundle(tmp_path / "model", {"family": "ctc", "model": {}}, {"a": torch.zeros(1)}, b"", "#")
    return tmp_path


def call(folder: Path, *more: str) -> Result:
    words = ["tune", str(folder / "dev"), "--ref", str(folder / "dev.txt"), "-m", str(folder / "model")]
    words += ["--lm", str(folder / "lm.arpa"), "-o", str(folder / "out"), *more]
    return CliRunner().invoke(build_app(words), words)


def test_the_best_weight_is_found_checked_and_written(dev: Path, scripted: Scripted) -> None:
    result = call(dev, "--tune", "fusion.weight=0.2,0.4,0.7,0.9")
    assert result.exit_code == 0, result.output
    assert scripted.searches == [0.4, 0.3, 0.7]  # the middle, as it was, the best
    assert "50.00 %  fusion.weight=0.7" in result.output
    written = yaml.safe_load((dev / "out" / "tuned.yaml").read_text())
    assert written["fusion"] == {"lm": "lm", "weight": 0.7}, "what the call asked for is kept"
    assert set(written["confidence"]) == {"bias", "token", "agreement", "entity"}
    assert DecodingConfig().changed(written, "tuned").fusion.weight == 0.7


def test_another_grid_needs_no_search(dev: Path, scripted: Scripted) -> None:
    call(dev, "--tune", "fusion.weight=0.2,0.4,0.7,0.9")
    scripted.searches.clear()
    result = call(dev, "--tune", "fusion.weight=0.1,0.4,0.6,0.7")
    assert result.exit_code == 0, result.output
    assert scripted.searches == [0.6]  # only the check of what was chosen now


def test_recordings_are_searched_in_their_contexts(dev: Path, scripted: Scripted) -> None:
    said = dev / "when.yaml"
    said.write_text("ann: {hour: 7}\nzoe: {hour: 8}\n")
    grid = ("--tune", "fusion.weight=0.2,0.7")
    result = call(dev, *grid, "--context", str(said))
    assert result.exit_code == 0, result.output
    assert scripted.heard_in == [{"ann": {"hour": 7}}] * len(scripted.searches)
    said.write_text("ann: {hour: 8}\n")
    assert call(dev, *grid, "--context", str(said)).exit_code == 0
    assert scripted.heard_in[-1] == {"ann": {"hour": 8}}, (
        "what was found in another context is searched again"
    )


def test_what_is_no_better_leaves_the_weights(dev: Path, scripted: Scripted) -> None:
    result = call(dev, "--tune", "fusion.weight=0.2,0.3,0.4")
    assert result.exit_code == 0, result.output
    assert "no better than before" in result.output
    written = yaml.safe_load((dev / "out" / "tuned.yaml").read_text())
    assert written["fusion"] == {"lm": "lm"}, "the weight stays"


def test_what_set_changed_is_written_too(dev: Path, scripted: Scripted) -> None:
    result = call(
        dev, "--tune", "fusion.weight=0.2,0.7", "--set", "search.beam=3", "--set", "fusion.end=true"
    )
    assert result.exit_code == 0, result.output
    assert f"--settings {dev}/out/tuned.yaml --lm {dev}/lm.arpa" in result.output
    written = yaml.safe_load((dev / "out" / "tuned.yaml").read_text())
    assert written["search"] == {"beam": 3}
    assert written["fusion"] == {"lm": "lm", "end": True, "weight": 0.7}


def test_only_a_real_edge_is_called_one(dev: Path, scripted: Scripted) -> None:
    says = "the best is the highest that was tried"
    assert says in call(dev, "--tune", "fusion.weight=0.2,0.4,0.7").output
    assert says not in call(dev, "--tune", "fusion.weight=0.7,0.9", "--tune", "label_bonus=0,1").output


def test_by_default_all_that_matters_is_tuned(dev: Path, scripted: Scripted) -> None:
    result = call(dev)
    assert result.exit_code == 0, result.output
    assert "of 54 choices" in result.output  # 9 weights by 6 bonuses


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tune", "fusion.wait=1"], "fusion.wait"),
        (["--tune", "fusion.weight=a,b"], "a setting and numbers"),
        (["--tune", "fusion.weight"], "a setting and numbers"),
        (["--tune", "fusion.weight=0.1,nan"], "a setting and numbers"),
        (["--tune", "class_bonus=1,2"], "lists of names (--entities) as classes"),
        (["--tune", "lm_scale=0.5,1"], "a factorized model"),
        (["--set", "search.beem=2"], "did you mean 'beam'"),
        (["--lm-text", "x"], "--lm-text without --test"),
    ],
)
def test_calls_that_cannot_be_used_say_so_and_search_nothing(
    dev: Path, scripted: Scripted, more: list[str], message: str
) -> None:
    result = call(dev, *more)
    assert result.exit_code == 2
    assert message in result.output
    assert scripted.searches == []


def test_the_test_set_is_refused(dev: Path, scripted: Scripted) -> None:
    result = call(dev, "--test", str(dev / "dev.txt"))
    assert result.exit_code == 2
    assert "both dev and test" in result.output
    assert scripted.searches == []


def test_text_of_the_test_set_is_refused_and_other_text_counted(dev: Path, scripted: Scripted) -> None:
    (dev / "test.txt").write_text("t1 call me at once\nt2 do it right now\n")
    (dev / "lm.txt").write_text("do it right now\n")
    result = call(dev, "--test", str(dev / "test.txt"), "--lm-text", str(dev / "lm.txt"))
    assert result.exit_code == 0, result.output
    assert "1 of 2 test sentences of 4 words or more stand in the language model's text" in result.output
    (dev / "lm.txt").write_text("do it right now\ncall me at once\n")
    result = call(dev, "--test", str(dev / "test.txt"), "--lm-text", str(dev / "lm.txt"))
    assert result.exit_code == 2
    assert "2 of 2 test sentences stand in the text of the language model" in result.output


def test_recordings_and_references_must_go_together(dev: Path, scripted: Scripted) -> None:
    (dev / "dev.txt").write_text("ann ann\n")
    result = call(dev)
    assert result.exit_code == 2
    assert "3 recordings without a line in" in result.output
    (dev / "dev.txt").write_text("ann ann\nben ben\ncat else\ndan else\neve eve\n")
    result = call(dev)
    assert result.exit_code == 2
    assert "1 lines of" in result.output
    assert "without a recording, such as 'eve'" in result.output
    assert scripted.searches == [], "told before anything is searched"


def test_a_recording_that_cannot_be_read_is_left_out_and_what_was_done_is_kept(
    dev: Path, scripted: Scripted
) -> None:
    (dev / "dev" / "dan.wav").write_bytes(b"broken")
    result = call(dev)
    assert result.exit_code == 1
    assert result.output.count("left out: dan: ") == 1
    assert "dan.wav is broken" in result.output
    assert "33.33 %" in result.output, "of the three others one is never right"
    assert (dev / "out" / "tuned.yaml").is_file()
    (dev / "dev" / "dan.wav").write_bytes(b"sound")
    result = call(dev)
    assert result.exit_code == 0, result.output
    assert "search: 1 recordings to search, 3 done before" in result.output
