"""The README's matrix: every family with every language model, internal one, use of lists and second pass.

Tiny random models; what must hold whatever the weights are: the parts add up to the score (but for what
recombination adds), each source that was asked for has its part, a weight of zero is as if the source were not
there, lists without an entry are no lists, a batch gives what its recordings give alone, and times, confidences
and entities come with it all.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from tiny_models import FAMILIES, FRAMES, LISTS, MODELS, SMALL, alike, make_bundles, options_of, sound
from typer.testing import CliRunner

from asr.cli.main import build_app
from asr.recognizer import Recognizer
from decoding.result import Hypothesis, Transcript
from lm.config import merge
from lm.errors import ConfigError, DataError
from lm.kneser_ney import train_arpa
from lm.model_files import make_language_model, save_language_model


@pytest.fixture(scope="module")
def recognizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recognizer]:
    folders = make_bundles(tmp_path_factory.mktemp("matrix"))
    return {family: Recognizer.load(folder) for family, folder in folders.items()}


def check(result: Transcript, parts: set[str]) -> None:
    assert result.text
    for hypothesis in result.hypotheses:
        check_hypothesis(hypothesis, parts, result.duration_s)


def check_hypothesis(hypothesis: Hypothesis, parts: set[str], duration_s: float) -> None:
    assert parts <= hypothesis.scores.keys()
    assert sum(hypothesis.scores.values()) <= hypothesis.score + 1e-3, "recombination only adds"
    times = [(w.start_s, w.end_s) for w in hypothesis.words]
    assert all(0 <= start <= end <= duration_s for start, end in times)
    assert times == sorted(times)
    assert all(0 <= w.confidence <= 1 for w in hypothesis.words)
    assert all(0 <= e.confidence <= 1 and e.start < e.end <= len(times) for e in hypothesis.entities)


def internals(family: str) -> list[dict[str, Any]]:
    known = [{}, {"internal": "lm", "internal_lm": "bigram", "internal_weight": 0.2}]
    return known if family == "ctc" else [*known, {"internal": "ilme", "internal_weight": 0.2}]


CELLS = [
    pytest.param(family, how, model, internal, biasing, second, id="-".join(
        (family, how, model, internal.get("internal", "no internal"), biasing, second or "one pass")
    ))
    for family in FAMILIES
    for how in (("add", "mix") if family == "factorized" else ("add",))
    for model in ("", *MODELS)
    for internal in internals(family)
    for biasing in ("none", "classes", "phrases")
    for second in (("",) if internal else ("", "ngram"))
    if (model or how == "add") and (model or family == "factorized" or biasing != "classes")
]  # fmt: skip


@pytest.mark.parametrize(("family", "how", "model", "internal", "biasing", "second"), CELLS)
def test_cell(
    recognizers: dict[str, Recognizer],
    family: str,
    how: str,
    model: str,
    internal: dict[str, Any],
    biasing: str,
    second: str,
) -> None:
    recognizer = recognizers[family]
    fusion = {"lm": model, "weight": 0.3, "how": how, **internal}
    options = options_of(
        recognizer,
        biasing=biasing,
        fusion=fusion,
        rescoring={"lm": second, "weight": 0.2, "internal_lm": second and "bigram"},
        search={"beam": 4},
    )
    recordings = [sound(1.5, 1), sound(2.2, 2)]
    lists = [LISTS, None] if biasing != "none" else [None, None]
    together = recognizer.transcribe(recordings, entities=lists, options=options)
    parts = {"model"}
    parts |= {"density_ratio"} if internal.get("internal") == "lm" else set()
    parts |= {"ilme"} if internal.get("internal") == "ilme" else set()
    parts |= {"rescoring", "rescoring_internal"} if second else set()
    parts |= {"phrases"} if biasing == "phrases" else set()
    parts |= {"fusion" if how == "add" and family == "factorized" else "lm"} if model else set()
    for result in together:
        check(result, parts - {"phrases"})
    check(together[0], parts)
    assert biasing == "classes" or not any(h.entities for h in together[0].hypotheses)
    for recording, entities, result in zip(recordings, lists, together, strict=True):
        alone = recognizer.transcribe(recording, entities=entities, options=options)
        alike(alone, result)


@pytest.mark.parametrize("model", ["", *MODELS])
@pytest.mark.parametrize("internal", internals("aed"), ids=str)
@pytest.mark.parametrize("biasing", ["none", "classes", "phrases"])
@pytest.mark.parametrize("second", ["", "ngram"])
def test_ctc_beside_the_decoder(
    recognizers: dict[str, Recognizer], model: str, internal: dict[str, Any], biasing: str, second: str
) -> None:
    if biasing == "classes" and not model:
        return  # refused: test_what_does_not_go_together
    recognizer = recognizers["aed"]
    torch.manual_seed(4)
    torch.nn.init.normal_(recognizer.family.model.ctc.weight)
    torch.nn.init.normal_(recognizer.family.model.ctc.bias, std=0.1)
    options = options_of(
        recognizer,
        biasing=biasing,
        attention={"ctc_weight": 0.4},
        fusion={"lm": model, "weight": 0.3, **internal},
        rescoring={"lm": second, "weight": 0.2, "internal_lm": second and "bigram"},
        search={"beam": 4},
    )
    recordings = [sound(1.5, 1), sound(2.2, 2)]
    lists = [LISTS, None] if biasing != "none" else [None, None]
    together = recognizer.transcribe(recordings, entities=lists, options=options)
    for recording, entities, result in zip(recordings, lists, together, strict=True):
        check(result, {"model", "ctc"} | ({"rescoring"} if second else set()) | ({"lm"} if model else set()))
        alike(recognizer.transcribe(recording, entities=entities, options=options), result)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("biasing", ["none", "classes", "phrases"])
@pytest.mark.parametrize("unit", ["subword", "word"])
@pytest.mark.parametrize("over", ["nbest", "lattice"])
def test_second_passes(
    recognizers: dict[str, Recognizer], tmp_path: Path, family: str, biasing: str, unit: str, over: str
) -> None:
    if over == "lattice" and family not in FRAMES:
        return  # refused: test_what_does_not_go_together
    recognizer = recognizers[family]
    if unit == "word":
        words = [["call", "maja", "novak"], ["abc", "call", "jim"]]
        train_arpa(words, 2, tmp_path / "words.arpa")
        recognizer.language_models.add("words", tmp_path / "words.arpa")
    second = {"lm": "words" if unit == "word" else "ngram", "unit": unit, "weight": 0.2, "over": over}
    if unit == "subword":
        second["internal_lm"] = "bigram"
    fusion = {"lm": "ngram", "weight": 0.3} if family != "factorized" else {}
    options = options_of(
        recognizer, biasing=biasing, rescoring=second, fusion=fusion, search={"beam": 4, "nbest": 6}
    )
    recordings = [sound(1.5, 1), sound(2.2, 2)]
    lists = [LISTS, None] if biasing != "none" else [None, None]
    parts = {"model", "rescoring"} | ({"rescoring_internal"} if unit == "subword" else set())
    together = recognizer.transcribe(recordings, entities=lists, options=options)
    for recording, entities, result in zip(recordings, lists, together, strict=True):
        check(result, parts)
        alike(recognizer.transcribe(recording, entities=entities, options=options), result)
        if over == "lattice":
            first = options_of(
                recognizer, biasing=biasing, rescoring=second | {"over": "nbest"}, fusion=fusion
            )
            listed = recognizer.transcribe(
                recording, entities=entities, options=first.changed({"search": {"beam": 4}}, "test")
            )
            assert result.hypotheses[0].score >= listed.hypotheses[0].score - 0.05
            assert len(result.hypotheses) <= 6


@pytest.mark.parametrize("family", FRAMES)
def test_lattices_go_with_their_transcripts(recognizers: dict[str, Recognizer], family: str) -> None:
    recognizer = recognizers[family]
    options = options_of(recognizer, search={"beam": 4}, segment_s=2.0)
    recordings = [sound(1.5, 1), sound(3.2, 2)]
    found = recognizer.lattices(recordings, entities=LISTS, options=options)
    assert [len(lattices) for _, lattices in found] == [1, 2]
    for recording, (transcript, lattices) in zip(recordings, found, strict=True):
        alike(recognizer.transcribe(recording, entities=LISTS, options=options), transcript)
        best = [lattice.best_path() for lattice in lattices if lattice is not None]
        assert " ".join(recognizer.tokenizer.decode(path.tokens) for path in best) == transcript.text
        assert sum(path.score for path in best) == pytest.approx(transcript.hypotheses[0].score, abs=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("model", MODELS)
def test_a_weight_of_zero_is_no_source(recognizers: dict[str, Recognizer], family: str, model: str) -> None:
    recognizer = recognizers[family]
    plain = recognizer.transcribe(sound(2.0, 3), options=options_of(recognizer))
    off = {
        "fusion": {
            "lm": model,
            "weight": 0.0,
            "internal": "lm",
            "internal_lm": "bigram",
            "internal_weight": 0.0,
        },
        "rescoring": {"lm": model, "weight": 0.0, "internal_lm": "bigram", "internal_weight": 0.0},
    }
    silent = recognizer.transcribe(sound(2.0, 3), options=options_of(recognizer, **off))
    assert replace(silent, id="") == replace(plain, id="")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("biasing", ["classes", "phrases"])
def test_no_lists_are_empty_lists(
    recognizers: dict[str, Recognizer], family: str, model: str, biasing: str
) -> None:
    recognizer = recognizers[family]
    options = options_of(recognizer, biasing=biasing, fusion={"lm": model})
    results = recognizer.transcribe([sound(2.0, 3)] * 2, entities=[None, {}], options=options)
    assert replace(results[0], id="") == replace(results[1], id="")
    alone = recognizer.transcribe(sound(2.0, 3), options=options)
    alike(alone, results[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_classes_find_entities_in_every_family(recognizers: dict[str, Recognizer], family: str) -> None:
    recognizer = recognizers[family]
    # Random weights end an attention model's hypotheses at once unless labels are worth something.
    options = options_of(
        recognizer,
        fusion={"lm": "transformer", "weight": 0.5},
        class_bonus=9.0,
        label_bonus=4.0 if family == "aed" else 0.0,
    )
    results = recognizer.transcribe([sound(3.0, s) for s in range(4)], entities=LISTS, options=options)
    found = {e.written for r in results for h in r.hypotheses for e in h.entities}
    assert found
    assert found <= {name for names in LISTS.values() for name in names}


@pytest.mark.parametrize("family", ["ctc", "transducer", "taed", "aed"])
def test_lists_without_any_class_model_are_phrases(recognizers: dict[str, Recognizer], family: str) -> None:
    recognizer = recognizers[family]
    assert recognizer.decoding.biasing == "auto"
    result = recognizer.transcribe(sound(2.0, 3), entities=LISTS)
    assert "phrases" in result.hypotheses[0].scores
    with pytest.raises(ConfigError, match="no language model knows classes"):
        recognizer.transcribe(
            sound(2.0, 3), entities=LISTS, options=options_of(recognizer, biasing="classes")
        )
    bigram = options_of(recognizer, biasing="classes", fusion={"lm": "bigram"})
    with pytest.raises(ConfigError, match="no language model knows classes"):
        recognizer.transcribe(sound(2.0, 3), entities=LISTS, options=bigram)
    for model, part in (("bigram", "phrases"), ("ngram", "lm")):
        fused = options_of(recognizer, fusion={"lm": model})
        assert recognizer.biasing(fused) == ("phrases" if model == "bigram" else "classes")
        result = recognizer.transcribe(sound(2.0, 3), entities=LISTS, options=fused)
        assert part in result.hypotheses[0].scores
        assert ("phrases" in result.hypotheses[0].scores) == (part == "phrases")


def test_a_language_model_in_place_of_another_is_asked_anew(
    recognizers: dict[str, Recognizer], tmp_path: Path
) -> None:
    recognizer = recognizers["ctc"]
    for name, expected in (("bigram", "phrases"), ("ngram", "classes")):
        path = tmp_path / name / "own.safetensors"
        path.parent.mkdir()
        path.write_bytes(recognizer.language_models._files[name].read_bytes())
        recognizer.language_models.add("own", path)
        assert recognizer.biasing(options_of(recognizer, fusion={"lm": "own"})) == expected


@pytest.mark.parametrize(
    ("family", "model"),
    [
        *((family, "ngram") for family in FAMILIES),
        ("ctc", "lstm-end"),
        ("factorized", "transformer-end"),
        ("aed", "transformer-end"),
    ],
)
def test_ends_of_sentences_in_fusion(
    recognizers: dict[str, Recognizer], tmp_path: Path, family: str, model: str
) -> None:
    recognizer = recognizers[family]
    kind = model.removesuffix("-end")
    if model != kind:
        torch.manual_seed(5)
        lm: Any = make_language_model(kind, SMALL[kind] | {"end": True}, recognizer.tokenizer, "here")
        lm.output.weight.data.mul_(4.0)
        save_language_model(tmp_path / f"{model}.safetensors", kind, lm.config, lm, recognizer.tokenizer)
        recognizer.language_models.add(model, tmp_path / f"{model}.safetensors")
    internal = {"internal": "lm", "internal_lm": "bigram"} if kind == "ngram" else {}
    fusion = {"lm": model, "weight": 0.5, "end": True, **internal}
    options = options_of(recognizer, fusion=fusion, search={"beam": 4})
    recordings, lists = [sound(0.8, 1), sound(1.2, 2)], [LISTS, None]
    together = recognizer.transcribe(recordings, entities=lists, options=options)
    name = "fusion" if family == "factorized" else "lm"
    for recording, entities, result in zip(recordings, lists, together, strict=True):
        check(result, {"model", name, "end"} | ({"density_ratio"} if internal else set()))
        assert all(h.scores["end"] < 0 for h in result.hypotheses)
        assert [h.score for h in result.hypotheses] == sorted(h.score for h in result.hypotheses)[::-1]
        alike(recognizer.transcribe(recording, entities=entities, options=options), result)
    without = options_of(recognizer, fusion=fusion | {"end": False}, search={"beam": 4})
    plain = recognizer.transcribe(recordings, entities=lists, options=without)
    assert not any("end" in h.scores for result in plain for h in result.hypotheses)
    silent, nothing = (
        repr(recognizer.transcribe(recordings, entities=lists, options=options_of(recognizer, fusion=f)))
        for f in (fusion | {"weight": 0.0}, internal)
    )
    assert silent == nothing


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("over", ["nbest", "lattice"])
def test_ends_of_sentences_in_the_second_pass(
    recognizers: dict[str, Recognizer], tmp_path: Path, family: str, over: str
) -> None:
    if over == "lattice" and family not in FRAMES:
        return
    recognizer = recognizers[family]
    first = {"lm": "ngram", "weight": 0.5}
    words = [["call", "maja", "novak"], ["abc", "call", "jim"]]
    train_arpa(words, 2, tmp_path / "words.arpa")
    recognizer.language_models.add("words", tmp_path / "words.arpa")

    def found(end: bool | None, **second: Any) -> list[Hypothesis]:
        options = options_of(
            recognizer, fusion=first | {"end": bool(end)}, search={"beam": 4},
            rescoring=first | {"over": over, "end": end} | second,
        )  # fmt: skip
        return [
            h
            for each in recognizer.transcribe([sound(0.8, 1), sound(1.2, 2)], options=options)
            for h in each.hypotheses
        ]

    name = "fusion" if family == "factorized" else "lm"
    for hypothesis in found(True):
        scores = hypothesis.scores
        assert scores["rescoring"] == pytest.approx(scores[name] + scores["end"], abs=1e-3)
        assert scores["end"] < 0
    for hypothesis in found(None):
        assert hypothesis.scores["rescoring"] == pytest.approx(hypothesis.scores[name], abs=1e-3)
    ended, unsaid, open_ = (
        {h.text: h.scores["rescoring"] for h in found(end, lm="words", unit="word")}
        for end in (True, None, False)
    )
    both = unsaid.keys() & open_.keys()
    assert both
    assert all(unsaid[text] < open_[text] for text in both)
    assert all(ended[text] == pytest.approx(unsaid[text]) for text in ended.keys() & unsaid.keys())


def test_ends_that_are_not_known(recognizers: dict[str, Recognizer]) -> None:
    for family in ("ctc", "factorized", "aed"):
        options = options_of(recognizers[family], fusion={"lm": "lstm", "end": True})
        with pytest.raises(ConfigError, match="trained with end: true"):
            recognizers[family].transcribe(sound(0.5, 1), options=options)
    with pytest.raises(ValueError, match="only with how: add"):
        options_of(recognizers["factorized"], fusion={"lm": "ngram", "how": "mix", "end": True})


def test_what_does_not_go_together(recognizers: dict[str, Recognizer]) -> None:
    over = options_of(recognizers["aed"], rescoring={"lm": "ngram", "over": "lattice"})
    with pytest.raises(ConfigError, match=r"rescoring.over=nbest"):
        recognizers["aed"].transcribe(sound(0.5, 1), options=over)
    for family, fusion, says in (
        ("ctc", {"internal": "ilme"}, "ilme with a CTC model"),
        ("ctc", {"lm": "ngram", "how": "mix"}, "no language model of its own"),
        ("factorized", {"lm": "trigram"}, "based, bigram, contextual, lstm, ngram, transformer"),
    ):
        recognizer = recognizers[family]
        with pytest.raises(ConfigError, match=says):
            recognizer.transcribe(sound(0.5, 1), options=options_of(recognizer, fusion=fusion))


FIRST = {"fusion": {"lm": "contextual", "weight": 0.5}}
SECOND = {"rescoring": {"lm": "contextual", "weight": 0.5}}
TAKEN_OUT = {"fusion": {"internal": "lm", "internal_lm": "contextual"}}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *((family, FIRST) for family in ("ctc", "factorized", "aed")),
        ("factorized", merge(FIRST, {"fusion": {"how": "mix"}})),
        ("ctc", SECOND),
        ("taed", merge(SECOND, {"rescoring": {"over": "lattice"}})),
        ("transducer", TAKEN_OUT),
        ("factorized", {"rescoring": {"internal_lm": "contextual"}}),
    ],
)
def test_each_recording_is_heard_in_its_own_context(
    recognizers: dict[str, Recognizer], family: str, changes: dict[str, Any]
) -> None:
    recognizer = recognizers[family]
    options = options_of(recognizer, search={"beam": 4}, **changes)
    recordings = [sound(1.5, 1), sound(2.2, 2), sound(1.0, 3)]
    contexts = [{"app": "maps"}, None, {"hour": 7, "app": "music"}]
    together = recognizer.transcribe(recordings, context=contexts, options=options)
    for recording, context, result in zip(recordings, contexts, together, strict=True):
        alike(recognizer.transcribe(recording, context=context, options=options), result)
    plain = recognizer.transcribe(recordings, options=options)
    alike(plain[1], together[1])
    assert recognizer.transcribe(recordings, context={}, options=options) == plain
    for number in (0, 2):
        known, unknown = together[number].hypotheses[0], plain[number].hypotheses[0]
        assert known.score != pytest.approx(unknown.score, abs=1e-3)


def test_contexts_that_nothing_takes(recognizers: dict[str, Recognizer]) -> None:
    recognizer = recognizers["ctc"]
    known = {"app": "maps"}
    for changes in ({}, {"fusion": {"lm": "lstm"}}, {"rescoring": {"lm": "ngram"}}):
        options = options_of(recognizer, **changes)
        with pytest.raises(ConfigError, match="no language model takes any"):
            recognizer.transcribe(sound(0.5, 1), context=known, options=options)
        with pytest.raises(ConfigError, match="no language model takes any"):
            recognizer.lattices([sound(0.5, 1)], context=known, options=options)
    options = options_of(recognizer, **FIRST)
    for context, says in (({"hour": 25}, "from 0 to 24"), ({"apps": "maps"}, "did you mean 'app'")):
        with pytest.raises(DataError, match=says):
            recognizer.transcribe(sound(0.5, 1), context=context, options=options)
    with pytest.raises(Exception, match="1 contexts for 2 recordings"):
        recognizer.transcribe([sound(0.5, 1)] * 2, context=[known], options=options)
    transcript, _ = recognizer.lattices([sound(1.5, 1)], context=known, options=options)[0]
    alike(transcript, recognizer.transcribe(sound(1.5, 1), context=known, options=options))


def test_the_command_takes_contexts(tmp_path: Path, recognizers: dict[str, Recognizer]) -> None:
    recognizer = recognizers["ctc"]
    models = recognizer.language_models
    folder = models._file("contextual").parent.parent
    contexts = {"a": {"app": "maps", "hour": 7}, "b": {"app": "music"}}
    for number, name in enumerate("abc"):
        soundfile.write(tmp_path / f"{name}.wav", sound(1.5, number), 16000, subtype="FLOAT")
    (tmp_path / "when.yaml").write_text(str(contexts))

    def call(*words: str) -> Any:
        argv = ["transcribe", str(tmp_path), "-m", str(folder), "--context", str(tmp_path / "when.yaml")]
        return CliRunner().invoke(build_app(argv), [*argv, *words])

    result = call("--set", "fusion.lm=contextual", "--set", "fusion.weight=3")
    assert result.exit_code == 0, result.output
    options = options_of(recognizer, fusion={"lm": "contextual", "weight": 3})
    paths = [tmp_path / f"{name}.wav" for name in "abc"]
    expected = recognizer.transcribe(paths, context=[*contexts.values(), None], options=options)
    assert result.stdout.splitlines() == [f"{found.id}\t{found.text}" for found in expected]
    assert expected[0].text != recognizer.transcribe(paths[0], options=options).text
    refused = call()
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.splitlines()[-1].startswith("asr: error: contexts of utterances where no language")
