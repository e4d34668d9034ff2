"""The recipe of a language model, on tiny texts."""

from __future__ import annotations

import json
import lzma
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from asr.cli.main import build_app
from asr.data.text_batches import TextBatches
from asr.data.token_text import TokenText, encode_text
from asr.losses.text import token_logp
from asr.scoring.head_tail import head_and_tail
from asr.scoring.perplexity import score_file, score_ngram
from lm.config import build_config, merge
from lm.errors import ConfigError, DataError
from lm.model_files import load_language_model
from lm.ngram import NGramModel
from lm.tokenizer import Tokenizer
from lm.vocabulary import WordVocabulary, load_units
from recipes.lm import contexts_of, lines_of, lm_recipe
from recipes.lm_config import LMRecipeConfig, TextConfig

NAMES = ("MAJA NOVAK", "BEN", "ZOE")


def sentences(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    verbs, times = ("CALL", "WRITE TO", "ASK"), ("NOW", "TODAY", "LATER ON", "TOMORROW MORNING")
    return [
        f"{draw.choice(verbs)} <contact>{draw.choice(NAMES)}</contact> {draw.choice(times)} {seed} {i}".translate(
            str.maketrans("0123456789", "ABCDEFGHIJ")
        )
        for i in range(count)
    ]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    with lzma.open(folder / "train.txt.xz", "wt") as file:
        file.write("\n".join(sentences(300, 1)) + "\n\n")
    (folder / "dev.txt").write_text("\n".join(f"id-{i} {s}" for i, s in enumerate(sentences(40, 2))))
    return folder


VALUES: dict[str, Any] = {
    "recipe": "lm",
    "corpus": "toys",
    "train": [{"path": "train.txt.xz", "sentences": 250}],
    "dev": {"path": "dev.txt", "ids": True},
    "units": {"kind": "subword", "vocab_size": 40},
    "classes": ["contact"],
    "lm": {
        "kind": "lstm",
        "model": {"width": 12},
        "epochs": 2,
        "evaluations": 4,
        "batch_tokens": 300,
        "buffer": 70,
    },
}


def run(values: dict[str, Any], work: Path, corpus: Path, **options: Any) -> None:
    lm_recipe(build_config(LMRecipeConfig, values, "here"), work, corpus).run(**options)


def test_from_text_to_perplexity(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "work"
    run(VALUES, work, corpus)
    figures = json.loads((work / "RESULTS.json").read_text())
    assert len(figures) == 2
    assert all(f["token"]["low"] <= f["token"]["value"] <= f["token"]["high"] for f in figures.values())
    assert TokenText(work / "tokens" / "train").summary.sentences == 250
    steps = [json.loads(line)["step"] for line in (work / "training" / "log.jsonl").read_text().splitlines()]
    assert len(steps) == 4
    assert list((work / "training" / "tensorboard").iterdir())
    run(VALUES, work, corpus)
    assert capsys.readouterr().out.count("skipped: unchanged") == 4


def test_an_interrupted_training_ends_as_one_that_was_not(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asr.training.text_loop import TextTrainer

    run(VALUES, tmp_path / "whole", corpus)
    update = TextTrainer._update
    values = merge(VALUES, {"lm": {"checkpoint_s": 1e-9}})

    def killed(self: TextTrainer, batch: Any, step: int) -> None:
        if step == 17:
            raise RuntimeError("killed")
        update(self, batch, step)

    monkeypatch.setattr(TextTrainer, "_update", killed)
    with pytest.raises(Exception, match="killed"):
        run(values, tmp_path / "cut", corpus)
    monkeypatch.setattr(TextTrainer, "_update", update)
    run(values, tmp_path / "cut", corpus)
    one, other = (load_file(tmp_path / w / "lstm.safetensors") for w in ("whole", "cut"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["subword", "word"])
def test_ngrams_and_words(corpus: Path, tmp_path: Path, kind: str) -> None:
    units = {"kind": "word", "size": 20} if kind == "word" else VALUES["units"]
    values = {**VALUES, "units": units, "lm": {"kind": "ngram", "order": 3}}
    run(values, tmp_path / "work", corpus)
    figures = json.loads((tmp_path / "work" / "RESULTS.json").read_text())
    assert all(1 < f["word"]["value"] < 1e6 for f in figures.values())
    assert any(f["unknown"] > 0 for f in figures.values()) == (kind == "word")


def test_scores_are_those_of_sentences_alone(corpus: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    run(VALUES, work, corpus)
    units, text = load_units(work), TokenText(work / "tokens" / "dev")
    found = score_file(work / "lstm.safetensors", text, units)["as spoken, ends of sentences not counted"]
    store = load_language_model(work / "lstm.safetensors", units).contexts()
    for index in (0, 7, 39):
        state, total = store.start(1), 0.0
        for token in text.sentence(index).tolist():
            total += float(store.score(state)[0, token])
            state = store.advance(state, torch.tensor([token]))
        assert found.logp[index] == pytest.approx(total, abs=1e-3)


def test_ngram_scores_are_those_of_the_file(corpus: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    run({**VALUES, "lm": {"kind": "ngram", "order": 3}}, work, corpus)
    units, text = load_units(work), TokenText(work / "tokens" / "dev")
    model = NGramModel.from_arpa(work / "ngram.arpa", units)
    whole = score_ngram(model, text, classes=True)
    for index in (0, 7, 39):
        expected = model.score_text(text.pattern(index, units.vocab_size))
        assert whole.logp[index] == pytest.approx(expected, abs=1e-3)


def test_a_text_larger_than_the_buffer_is_all_there_once_an_epoch(tmp_path: Path) -> None:
    lines = [" ".join(["A"] * (1 + i % 7) + [f"W{i}"]) for i in range(1000)]
    units = WordVocabulary.learn(lines, 2000)
    encode_text(iter(lines), units, tmp_path / "text")
    text = TokenText(tmp_path / "text")
    batches = TextBatches(text, units.vocab_size, 60, buffer=100, seed=3)
    orders = []
    for epoch in range(2):
        found = list(batches.epoch(epoch))
        assert len(found) == batches.count(epoch)
        assert all(b.tokens.shape[0] * (b.tokens.shape[1] + 1) <= 60 for b in found)
        last = [int(row[n - 1]) for b in found for row, n in zip(b.tokens, b.lengths, strict=True)]
        assert sorted(last) == sorted(units.number(f"W{i}") for i in range(1000))
        orders.append(last)
        rest = list(batches.epoch(epoch, 5))
        assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(found[5:], rest, strict=True))
    assert orders[0] != orders[1]
    numbers = np.concatenate([chosen for chosen, _ in batches.in_order()])
    assert sorted(numbers.tolist()) == list(range(1000))


def test_padding_has_no_say(corpus: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    run(VALUES, work, corpus)
    units = load_units(work)
    model: Any = load_language_model(work / "lstm.safetensors", units)
    _, batch = next(TextBatches(TokenText(work / "tokens" / "dev"), units.vocab_size, 10_000).in_order())
    logp, targets = token_logp(model, batch, spoken=True, ends=False)
    assert (targets >= 0).sum(1).tolist() == batch.lengths.tolist()
    assert bool((logp[targets < 0] == 0).all())


def test_what_cannot_be_used_is_told(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'units'"):
        build_config(LMRecipeConfig, {**VALUES, "unitz": 1}, "here")
    with pytest.raises(ConfigError, match="widht"):
        lm_recipe(
            build_config(LMRecipeConfig, merge(VALUES, {"lm": {"model": {"widht": 3}}}), "here"), tmp_path
        )
    (corpus / "dev.txt").write_text("\n".join(f"id {line}" for line in sentences(300, 1)[:20]))
    with pytest.raises(Exception, match="stand in the training text"):
        run(VALUES, tmp_path / "work", corpus)
    with pytest.raises(DataError):
        encode_text(iter(["", " "]), WordVocabulary(["A"]), tmp_path / "empty")


APPS = {"maps": "ROUTE", "music": "SONG", "phone": "CALL"}
SAID: dict[str, Any] = {
    "recipe": "lm",
    "corpus": "toys",
    "train": [{"path": "train.jsonl"}],
    "dev": {"path": "dev.jsonl"},
    "evaluation": {
        "shuffled": {"path": "dev.jsonl", "contexts": "shuffled"},
        "blind": {"path": "dev.jsonl", "contexts": "none"},
        "plain": {"path": "dev.txt"},
    },
    "units": {"kind": "word", "size": 40},
    "head_and_tail": True,
    "lm": {
        "kind": "contextual",
        "model": {
            "width": 12,
            "context_width": 6,
            "dropout": 0.0,
            "fields": [{"kind": "categorical", "name": "app", "values": list(APPS)}],
        },
        "epochs": 8,
        "evaluations": 4,
        "batch_tokens": 60,
        "peak_lr": 0.03,
    },
}


def write_said(path: Path, count: int, seed: int) -> list[str]:
    """Sentences of which the app tells the first word, and lines that cannot be encoded among them."""
    draw, lines = random.Random(seed), list[str]()
    for number in range(count):
        app = draw.choice(list(APPS))
        said = f"{APPS[app]} {' '.join(draw.choice('ABCDEFGH') for _ in range(3))}"
        lines.append(json.dumps({"text": said, "context": {"app": app}, "id": number}))
        if number % 5 == 0:
            lines.append(json.dumps({"text": " ", "context": {"app": "never met"}}))
    path.write_text("\n".join(lines))
    return lines


@pytest.fixture
def told(tmp_path: Path) -> Path:
    folder = tmp_path / "told"
    folder.mkdir()
    write_said(folder / "train.jsonl", 250, 1)
    rows = map(json.loads, write_said(folder / "dev.jsonl", 60, 2))
    (folder / "dev.txt").write_text("\n".join(row["text"] for row in rows))
    return folder


def test_a_contextual_model_uses_the_contexts_of_the_text(told: Path, tmp_path: Path) -> None:
    run(SAID, tmp_path / "work", told)
    figures = json.loads((tmp_path / "work" / "RESULTS.json").read_text())
    how = "as spoken, ends of sentences not counted"
    value = {name: figures[f"{name}, {how}"]["token"]["value"] for name in ("dev", *SAID["evaluation"])}
    assert value["dev"] < 0.85 * value["blind"]
    assert value["dev"] < 0.8 * value["shuffled"]
    assert value["plain"] == pytest.approx(value["blind"], abs=1e-4)
    halves = [figures[f"dev, {how}, {half}"] for half in ("head", "tail")]
    assert sum(half["sentences"] for half in halves) == figures[f"dev, {how}"]["sentences"] == 60
    text = TokenText(tmp_path / "work" / "tokens" / "dev")
    units = load_units(tmp_path / "work")
    contexts = text.contexts()
    assert contexts is not None
    for index in range(len(text)):
        assert units.pieces[int(text.sentence(index)[0])] == APPS[contexts[index]["app"]]
    mixed = TokenText(tmp_path / "work" / "tokens" / "shuffled").contexts()
    assert mixed is not None
    assert mixed != contexts
    rows = [json.loads(line) for line in (told / "dev.jsonl").read_text().splitlines()]
    flat = [{"said": row["text"], **row["context"]} for row in rows]
    (told / "flat.jsonl").write_text("\n".join(map(json.dumps, flat)))
    for arguments, name in (
        (["dev.jsonl"], "dev"),
        (["flat.jsonl", "--text-key", "said", "--context-fields", "app"], "dev"),
        (["dev.txt"], "blind"),
    ):
        argv = ["lm", "score", str(tmp_path / "work"), str(told / arguments[0]), *arguments[1:]]
        argv[2] += "/contextual.safetensors"
        done = CliRunner().invoke(build_app(argv), argv)
        assert f"perplexity a token  {value[name]:.2f} [" in done.stdout, done.output
    argv = [*argv, "--context-fields", "app"]
    refused = CliRunner().invoke(build_app(argv), argv)
    assert refused.exit_code == 2
    assert "a .jsonl file" in refused.stderr


def test_a_model_told_of_shuffled_contexts_learns_nothing_of_them(told: Path, tmp_path: Path) -> None:
    control = [{"path": "train.jsonl", "contexts": "shuffled"}]
    values = {**SAID, "train": control, "dev": {"path": "dev.jsonl", "contexts": "shuffled"}}
    run({**values, "evaluation": {"own": {"path": "dev.jsonl"}}}, tmp_path / "work", told)
    figures = json.loads((tmp_path / "work" / "RESULTS.json").read_text())
    own, other = (figures[f"{n}, as spoken, ends of sentences not counted"] for n in ("own", "dev"))
    assert own["token"]["value"] == pytest.approx(other["token"]["value"], rel=0.1)


def test_halves_of_a_text_by_its_rarest_words(tmp_path: Path) -> None:
    lines = ["A A B", "A B", "A C", "A B D"]
    units = WordVocabulary(["A", "B", "C"])
    for name, text in (("train", lines), ("text", ["A", "B A", "C", "D A", "A A"])):
        encode_text(text, units, tmp_path / name)
    found = head_and_tail(TokenText(tmp_path / "train"), TokenText(tmp_path / "text"), units)
    # A is there 5 times, B 3, C once, D is unknown: the rarest words of the sentences are seen 5, 3, 1, 0, 5 times.
    assert found["head"].tolist() == [True, False, False, False, True]
    assert (found["head"] ^ found["tail"]).all()
    words = Tokenizer.train(["call maja novak", "abcdefghijklmnopqrstuvwxyz"] * 20, 40)
    for name, text in (
        ("train", ["maja maja call call novak"] * 2),
        ("text", ["call maja", "maja novak", "zoe"]),
    ):
        encode_text(text, words, tmp_path / name)
    found = head_and_tail(TokenText(tmp_path / "train"), TokenText(tmp_path / "text"), words)
    assert found["head"].tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("line", "changes", "says"),
    [
        ('{"text": 7, "context": {}}', {}, "train.jsonl line 1"),
        ('{"text": "A B", "context": "maps"}', {}, "fields with values"),
        ("A B", {}, "train.jsonl line 1"),
        ('{"text": "A B", "context": {"ap": "maps"}}', {}, "did you mean 'app'"),
        ('{"text": "A B"}', {"train": [{"path": "train.jsonl", "contexts": "none"}]}, "without contexts"),
    ],
)
def test_text_with_contexts_that_cannot_be_used(
    told: Path, tmp_path: Path, line: str, changes: dict[str, Any], says: str
) -> None:
    (told / "train.jsonl").write_text(line + "\n")
    with pytest.raises(Exception, match=says):
        run({**SAID, **changes}, tmp_path / "work", told)


def test_fields_that_stand_in_the_line_itself(told: Path) -> None:
    (told / "flat.jsonl").write_text('{"said": "A", "app": "maps", "x": 1}\n{"said": "B", "app": null}\n')
    text = TextConfig(path=told / "flat.jsonl", text="said", context=("app", "hour"))
    assert list(lines_of(text)) == ["A", "B"]
    assert list(contexts_of([text]) or ()) == [{"app": "maps", "hour": None}, {"app": None, "hour": None}]
    assert list(lines_of(text.model_copy(update={"skip": 1, "sentences": 5}))) == ["B"]
    plain = TextConfig(path=told / "dev.txt")
    assert contexts_of([plain]) is None
    assert len(list(contexts_of([text, plain]) or ())) == 2 + len(list(lines_of(plain)))
