"""Perplexity of what recognizers expect when nothing is heard, and the command that prints it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, make_bundles
from typer.testing import CliRunner

from asr.cli.main import build_app
from asr.data.token_text import TokenText, encode_text
from asr.recognizer import Recognizer
from asr.scoring.internal import score_internal
from lm.errors import ConfigError

LINES = ["CALL MAJA", "NOVAK", "CALL ZOE MAJA CALL", "A B", "MAJA CALL NOVAK NOVAK"]
INTERNAL = [family for family in FAMILIES if family != "ctc"]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_bundles(tmp_path_factory.mktemp("models"))


def encoded(lines: list[str], recognizer: Recognizer, place: Path) -> TokenText:
    encode_text(lines, recognizer.tokenizer, place)
    return TokenText(place)


@pytest.mark.parametrize("family", INTERNAL)
def test_a_batch_scores_what_its_sentences_score_alone(
    family: str, bundles: dict[str, Path], tmp_path: Path
) -> None:
    recognizer = Recognizer.load(bundles[family])
    together = score_internal(recognizer, encoded(LINES, recognizer, tmp_path / "all"))
    for index, line in enumerate(LINES):
        alone = score_internal(recognizer, encoded([line], recognizer, tmp_path / str(index)))
        assert together.logp[index] == pytest.approx(alone.logp[0], abs=1e-4)
    assert len(set(together.logp.round(3))) == len(LINES)
    assert not together.ends
    assert together.words.tolist() == [len(line.split()) for line in LINES]


def expected_by(family: str, model: Any, labels: torch.Tensor, tokens: int) -> torch.Tensor:
    """Logits of the labels: of the predictor, or of the decoder without frames and without the end."""
    if family == "factorized":
        logits: torch.Tensor = model.predictor(labels)[..., :tokens]
    else:
        logits = model.output(model.decoder(labels, None, None))[..., :-1]
    return logits


@pytest.mark.parametrize("family", ["factorized", "aed"])
def test_it_is_the_predictor_or_the_decoder_without_frames(
    family: str, bundles: dict[str, Path], tmp_path: Path
) -> None:
    recognizer = Recognizer.load(bundles[family])
    text = encoded(LINES, recognizer, tmp_path / "text")
    found = score_internal(recognizer, text)
    for index in range(len(LINES)):
        labels = torch.tensor(text.sentence(index).tolist())[None]
        with torch.inference_mode():
            logits = expected_by(family, recognizer.family.model, labels, recognizer.tokenizer.vocab_size)
        expected = logits[:, :-1].log_softmax(-1).gather(-1, labels[..., None]).sum()
        assert found.logp[index] == pytest.approx(float(expected), abs=1e-4)


def test_ctc_expects_nothing(bundles: dict[str, Path], tmp_path: Path) -> None:
    recognizer = Recognizer.load(bundles["ctc"])
    with pytest.raises(ConfigError, match="CTC has no internal language model"):
        score_internal(recognizer, encoded(LINES, recognizer, tmp_path / "text"))


def ask(*arguments: object) -> tuple[int, str]:
    argv = ["lm", "score", *map(str, arguments)]
    done = CliRunner().invoke(build_app(argv), argv)
    return done.exit_code, done.output


def test_the_command_takes_a_recognizer(bundles: dict[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("\n".join(LINES))
    code, said = ask(bundles["aed"], text)
    assert code == 0, said
    assert "internal language model, ends of sentences not counted" in said
    assert "perplexity a token" in said
    for more in (["--words"], ["--tokenizer", bundles["ctc"]]):
        code, said = ask(bundles["aed"], text, *more)
        assert code == 2
        assert "a recognizer brings its own" in said.replace("\n", " ")
    code, said = ask(text, text, "--words", "--tokenizer", bundles["ctc"])
    assert code == 2
    assert "words need no tokenizer" in said.replace("\n", " ")
    code, said = ask(tmp_path / "nothing.arpa", text)
    assert code == 2
    assert "no such file or folder" in said
