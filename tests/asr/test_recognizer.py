"""The recognizer on a tiny random model: what it must keep to whatever the weights are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from numpy.typing import NDArray
from tiny_models import save_talkative, sound

import asr.knowledge
import asr.recognizer
from asr.audio import read_segments
from asr.decoding_config import DecodingConfig
from asr.recognizer import Recognizer
from asr.recordings import AudioPart
from decoding.frame_sync import BeamConfig
from decoding.phrase_boost import PhraseBoost
from decoding.result import Hypothesis, Transcript
from lm.classes import EntityCatalog, encode_catalog
from lm.errors import AudioError, EntityListError, VocativeError

Samples = NDArray[np.float32]
LISTS: dict[str, list[Any]] = {
    "contact": [
        *("Maja Novak", "Jim", "Zoe", "Li", "Wu"),
        {"text": "Anna", "id": "c7"},
        {"text": "Bo II", "spoken": ["bo", "bob"]},
    ],
    "city": ["Ulm", "Bonn", "Rio"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_talkative(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def recognizer(model: Path) -> Recognizer:
    return Recognizer.load(model)


def same(one: Transcript, other: Transcript, tolerance: float = 1e-4) -> None:
    """Equal but for the id and the last digits of scores and confidences."""
    assert (one.text, one.duration_s, len(one.hypotheses)) == (
        other.text,
        other.duration_s,
        len(other.hypotheses),
    )
    assert [(w.text, w.start_s, w.end_s) for w in one.words] == [
        (w.text, w.start_s, w.end_s) for w in other.words
    ]
    assert [(e.written, e.start, e.end) for e in one.entities] == [
        (e.written, e.start, e.end) for e in other.entities
    ]
    for mine, theirs in zip(one.hypotheses, other.hypotheses, strict=True):
        assert mine.text == theirs.text
        assert mine.score == pytest.approx(theirs.score, abs=tolerance)


def test_paths_and_arrays_of_any_kind_agree(recognizer: Recognizer, tmp_path: Path) -> None:
    integers = (sound(2.0, 1) * 32767).astype(np.int16)
    soundfile.write(tmp_path / "call.wav", integers, 16000)
    file = recognizer.transcribe(tmp_path / "call.wav", entities=LISTS)
    assert (file.id, file.duration_s) == ("call", 2.0)
    assert file.text
    floats = integers.astype(np.float32) / 32768
    given = [str(tmp_path / "call.wav"), integers, floats, torch.from_numpy(floats), np.stack([floats] * 2)]
    for number, result in enumerate(recognizer.transcribe(given, entities=LISTS)):
        same(result, file)
        assert result.id == ("call" if number == 0 else f"recording-{number}")


def test_other_sample_rates(recognizer: Recognizer, tmp_path: Path) -> None:
    low = sound(2.0, 3)[::2].copy()
    soundfile.write(tmp_path / "low.wav", low, 8000, subtype="FLOAT")
    from_array = recognizer.transcribe(low, sample_rate=8000, entities=LISTS)
    assert (from_array.duration_s, bool(from_array.text)) == (2.0, True)
    same(recognizer.transcribe(tmp_path / "low.wav", entities=LISTS), from_array)


def test_a_batch_gives_what_its_recordings_give_alone(recognizer: Recognizer) -> None:
    recordings = [sound(seconds, seed) for seed, seconds in enumerate((2.0, 0.5, 3.0, 1.2))]
    catalog = EntityCatalog.from_mapping({"city": ["Jena", "Kiel", "Graz", "Yverdon"]})
    each: list[Any] = [LISTS, None, {}, catalog]
    for options in (None, DecodingConfig(biasing="phrases", phrase_bonus=2.0)):
        together = recognizer.transcribe(recordings, entities=each, options=options)
        assert [t.id for t in together] == [f"recording-{n}" for n in range(4)]
        for recording, entities, result in zip(recordings, each, together, strict=True):
            same(recognizer.transcribe(recording, entities=entities, options=options), result)
    together = recognizer.transcribe(recordings, entities=each)
    assert [bool(t.entities) for t in together] == [True, False, False, True]
    listed = {entry.text for entry in catalog.classes["city"].entries}
    assert {e.written for e in together[3].entities} <= listed


def test_as_many_lists_as_recordings(recognizer: Recognizer) -> None:
    with pytest.raises(VocativeError, match="1 sets of entities for 2 recordings"):
        recognizer.transcribe([sound(0.5, 0)] * 2, entities=[LISTS])
    assert recognizer.transcribe([]) == []


def test_no_list_and_an_empty_one_are_the_same(recognizer: Recognizer) -> None:
    plain = recognizer.transcribe(sound(2.0, 5))
    assert plain.text
    nothing: Any
    for nothing in (EntityCatalog.empty(), {}, None):
        assert repr(recognizer.transcribe(sound(2.0, 5), entities=nothing)) == repr(plain)
        assert recognizer.transcribe(sound(2.0, 5), entities=nothing) == plain
    unused = recognizer.transcribe(
        sound(2.0, 5), entities=LISTS, options=recognizer.decoding.model_copy(update={"biasing": "none"})
    )
    assert unused == plain


@pytest.mark.parametrize("biasing", ["classes", "phrases"])
def test_the_order_of_a_list_does_not_matter(recognizer: Recognizer, tmp_path: Path, biasing: str) -> None:
    turned = {name: entries[::-1] for name, entries in reversed(LISTS.items())}
    options = DecodingConfig.model_validate({"biasing": biasing, "class_bonus": 4.0, "phrase_bonus": 2.0})
    one = recognizer.transcribe(sound(3.0, 6), entities=LISTS, options=options)
    recognizer._knowledge._lists.clear()
    assert recognizer.transcribe(sound(3.0, 6), entities=turned, options=options) == one
    (tmp_path / "lists.yaml").write_text(yaml.safe_dump(turned))
    listed = recognizer.transcribe(sound(3.0, 6), entities=tmp_path / "lists.yaml", options=options)
    assert listed == one


def check_hypothesis(found: Hypothesis, duration_s: float) -> None:
    assert found.text == " ".join(w.text for w in found.words)
    assert math.isfinite(found.score)
    times = [t for w in found.words for t in (w.start_s, w.end_s)]
    assert times == sorted(times)
    assert all(0.0 <= t <= duration_s for t in times)
    assert all(0.0 <= w.confidence <= 1.0 for w in found.words)
    last = 0
    for span in found.entities:
        assert last <= span.start < span.end <= len(found.words)
        last = span.end
        words = found.words[span.start : span.end]
        assert span.text == " ".join(w.text for w in words)
        assert (span.start_s, span.end_s) == (words[0].start_s, words[-1].end_s)
        assert 0.0 < span.confidence <= 1.0


def test_words_scores_and_spans_are_consistent(recognizer: Recognizer) -> None:
    entries = {
        form.upper(): (name, entry.text, entry.id)
        for name, kind in EntityCatalog.from_mapping(LISTS).classes.items()
        for entry in kind.entries
        for form in entry.spoken
    }
    spans = alternatives = 0
    for seed in range(8):
        result = recognizer.transcribe(sound(3.0, seed), entities=LISTS)
        best = result.hypotheses[0]
        assert (result.text, result.words, result.entities) == (best.text, best.words, best.entities)
        scores = [h.score for h in result.hypotheses]
        assert scores == sorted(scores, reverse=True)
        for found in result.hypotheses:
            check_hypothesis(found, result.duration_s)
            for span in found.entities:
                assert (span.class_name, span.written, span.id) == entries[span.text]
        spans += len(result.entities)
        alternatives += len({h.text for h in result.hypotheses}) - 1
    assert spans > 3
    assert alternatives > 3


def test_written_forms_stand_in_for_spoken_ones(recognizer: Recognizer) -> None:
    lists = {"contact": [{"text": f"{c}. 1st", "spoken": [c.lower()]} for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]}
    result = recognizer.transcribe(sound(3.0, 1), entities=lists)
    assert result.entities
    assert all(span.written == f"{span.text}. 1st" for span in result.entities)
    assert result.written.count(". 1st") == len(result.entities)


def test_options_replace_the_settings_of_the_model(recognizer: Recognizer) -> None:
    samples = sound(2.0, 1)
    assert recognizer.decoding.class_bonus == 4.0
    assert recognizer.transcribe(samples, entities=LISTS).entities
    never = DecodingConfig(class_bonus=-60.0)
    assert not recognizer.transcribe(samples, entities=LISTS, options=never).entities
    two = DecodingConfig(search=BeamConfig(nbest=2))
    assert len(recognizer.transcribe(samples, options=two).hypotheses) == 2
    assert recognizer.decoding.class_bonus == 4.0


def test_phrases_get_their_bonus_and_no_spans(recognizer: Recognizer) -> None:
    lists = {"contact": ["maja", "anna", "novak"], "city": ["a", "b", "j", "z"]}
    samples = sound(3.0, 2)
    without = DecodingConfig(biasing="none")
    plain = recognizer.transcribe(samples, entities=lists, options=without)
    bonus = DecodingConfig(biasing="phrases", phrase_bonus=4.0)
    found = recognizer.transcribe(samples, entities=lists, options=bonus)
    assert found.text != plain.text
    assert not found.entities
    assert found.hypotheses[0].scores["phrases"] > 0
    assert "phrases" not in plain.hypotheses[0].scores


def test_phrases_may_be_of_classes_that_the_model_does_not_know(recognizer: Recognizer) -> None:
    samples = sound(3.0, 2)
    bonus = DecodingConfig(biasing="phrases", phrase_bonus=4.0)
    known = recognizer.transcribe(samples, entities={"contact": ["maja", "anna"]}, options=bonus)
    other = recognizer.transcribe(samples, entities={"drug": ["maja", "anna"]}, options=bonus)
    assert other == known
    assert known.hypotheses[0].scores["phrases"] > 0
    assert recognizer.report({"drug": ["maja"]}, bonus).counts()["ok"] == 1
    with pytest.raises(EntityListError, match="class 'drug'"):
        recognizer.report({"drug": ["maja"]})


def test_the_weight_of_an_entry_moves_its_bonus_as_a_phrase(recognizer: Recognizer) -> None:
    def bonus(weights: tuple[float, float]) -> dict[str, float]:
        """Bonus of each name as a whole, in ``phrase_bonus``."""
        rows = [{"text": t, "weight": w} for t, w in zip(("maja", "anna"), weights, strict=True)]
        phrases = DecodingConfig(biasing="phrases")
        lists: Any = recognizer._knowledge.lists(recognizer.catalog({"contact": rows}), phrases)
        boost, found = PhraseBoost([lists.boost], 1.0), {}
        for name in ("maja", "anna"):
            state, total = boost.start(1), 0.0
            for token in recognizer.tokenizer.encode(name):
                total += float(boost.score(state, torch.tensor([[token]])))
                state = boost.advance(state, torch.tensor([token]))
            found[name] = total + float(boost.finish(state))
        return found

    plain = bonus((1.0, 1.0))
    assert plain == {name: len(recognizer.tokenizer.encode(name)) for name in plain}
    assert bonus((5.0, 5.0)) == plain, "only against each other"
    moved = bonus((3.0, 1.0))
    assert moved["maja"] == pytest.approx(plain["maja"] + math.log(1.5), abs=1e-5)
    assert moved["anna"] == pytest.approx(plain["anna"] + math.log(0.5), abs=1e-5)
    assert bonus((1e9, 1.0))["anna"] == 0.0, "no penalty"


def test_long_recordings_are_cut_and_joined(recognizer: Recognizer, tmp_path: Path) -> None:
    samples = sound(7.0, 4)
    soundfile.write(tmp_path / "long.flac", samples, 16000)
    options = recognizer.decoding.model_copy(update={"segment_s": 2.0})
    pieces = list(read_segments(tmp_path / "long.flac", 2.0))
    assert len(pieces) >= 4
    alone = recognizer.transcribe([piece for _, piece in pieces], entities=LISTS)
    for given in (tmp_path / "long.flac", samples):
        result = recognizer.transcribe(given, entities=LISTS, options=options)
        assert result.duration_s == 7.0
        (whole,) = result.hypotheses
        check_hypothesis(whole, 7.0)
        assert result.words[-1].end_s > 6.0
        assert result.entities
        if given is samples:
            continue
        assert result.text == " ".join(part.text for part in alone)
        assert whole.score == pytest.approx(sum(part.hypotheses[0].score for part in alone), abs=1e-3)
        starts = [
            round(start + word.start_s, 3)
            for (start, _), t in zip(pieces, alone, strict=True)
            for word in t.words
        ]
        assert [word.start_s for word in result.words] == pytest.approx(starts, abs=2e-3)


def test_an_array_hardly_longer_than_a_piece(recognizer: Recognizer) -> None:
    samples = sound(1.1, 4)[:16100]
    result = recognizer.transcribe(samples, options=DecodingConfig(segment_s=1.0))
    assert result.duration_s == round(16100 / 16000, 3)


@pytest.fixture
def batches(recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, float, float]]]:
    """(owner, start, duration) of what was decoded together."""
    seen: list[list[tuple[int, float, float]]] = []
    decode = Recognizer._decode

    def note(self: Recognizer, batch: Any, options: Any) -> Any:
        seen.append([(s.owner, s.start_s, s.duration_s) for s in batch])
        return decode(self, batch, options)

    monkeypatch.setattr(Recognizer, "_decode", note)
    return seen


def test_a_long_recording_is_decoded_while_it_is_read(
    recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, batches: list[Any]
) -> None:
    alive, most = 0, 0
    segment = asr.recognizer._Segment

    class Counted(segment):  # type: ignore[misc, valid-type]
        def __init__(self, *values: Any) -> None:
            nonlocal alive, most
            super().__init__(*values)
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    monkeypatch.setattr(asr.recognizer, "_Segment", Counted)
    quiet = np.random.default_rng(0).standard_normal(16000 * 120).astype(np.float32) / 1000
    soundfile.write(tmp_path / "long.wav", quiet, 16000)
    soundfile.write(tmp_path / "short.wav", quiet[:8000], 16000)
    paths = [tmp_path / "short.wav", tmp_path / "long.wav", tmp_path / "short.wav"]
    options = DecodingConfig(segment_s=2.0, search=BeamConfig(beam=2))
    results = list(recognizer.transcribe_many(paths, batch_s=10.0, options=options))
    assert [path for path, _ in results] == paths
    assert [r.duration_s for _, r in results if isinstance(r, Transcript)] == [0.5, 120.0, 0.5]
    assert len(batches) >= 12
    assert max(max(d for _, _, d in batch) * len(batch) for batch in batches) <= 10.0
    assert most <= 12
    assert sum(d for batch in batches for owner, _, d in batch if owner == 1) == pytest.approx(120.0)
    whole = list(recognizer.transcribe_many(paths, batch_s=1000.0, options=options))
    for (_, one), (_, other) in zip(results, whole, strict=True):
        assert isinstance(one, Transcript)
        assert isinstance(other, Transcript)
        same(one, other, 1e-3)


def test_many_short_recordings_share_batches(recognizer: Recognizer, batches: list[Any]) -> None:
    recordings = [sound(0.5 + (n * 7 % 5) / 10, n) for n in range(20)]
    results = dict(recognizer._run(recordings, [None] * 20, [None] * 20, 16000, None, batch_s=5.0))
    assert list(results) == list(range(20))
    assert len(batches) < 10
    alone = [recognizer.transcribe(recording) for recording in recordings]
    for number, result in results.items():
        assert isinstance(result, Transcript)
        same(result, alone[number])


def test_results_come_as_soon_as_they_are_known(recognizer: Recognizer, batches: list[Any]) -> None:
    read: list[int] = []

    class Recordings(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            for number, samples in enumerate(list.__iter__(self)):
                read.append(number)
                yield samples

    recordings = Recordings([sound(1.0, n) for n in range(6)])
    run = recognizer._run(recordings, [None] * 6, [None] * 6, 16000, None, batch_s=2.0)
    assert next(run)[0] == 0
    assert read == [0, 1]
    assert [number for number, _ in run] == [1, 2, 3, 4, 5]
    assert len(batches) == 3


def test_what_is_wrong_with_a_file_is_given_back_in_its_place(recognizer: Recognizer, tmp_path: Path) -> None:
    good = sound(1.0, 1)
    soundfile.write(tmp_path / "good.wav", good, 16000)
    (tmp_path / "text.wav").write_text("no audio " * 99)
    spoilt = np.concatenate([sound(20.0, 2), np.full(100, np.nan, np.float32)])
    soundfile.write(tmp_path / "spoilt.wav", spoilt, 16000, subtype="FLOAT")
    names = ["good", "text", "spoilt", "good", "gone", "good"]
    paths = [tmp_path / f"{name}.wav" for name in names]
    # Small enough for the first pieces of the spoilt file to be decoded before its end is read.
    options = DecodingConfig(segment_s=2.0)
    found = list(recognizer.transcribe_many(paths, batch_s=3.0, options=options))
    assert [path for path, _ in found] == paths
    results = dict(enumerate(result for _, result in found))
    for number, says in ((1, "text.wav"), (2, "100 of 320100 samples are NaN"), (4, "gone.wav")):
        error = results[number]
        assert isinstance(error, AudioError)
        assert says in str(error)
    expected = recognizer.transcribe(tmp_path / "good.wav", options=options)
    for number in (0, 3, 5):
        result = results[number]
        assert isinstance(result, Transcript)
        same(result, expected)
    with pytest.raises(AudioError, match="samples are NaN"):
        recognizer.transcribe([paths[0], paths[2]], options=options)


def test_a_part_is_heard_as_its_samples(recognizer: Recognizer, tmp_path: Path) -> None:
    samples = sound(3.0, 1)
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    parts = [AudioPart(tmp_path / "a.wav", 0.5, 1.75), AudioPart(tmp_path / "a.wav", 1.5)]
    expected = recognizer.transcribe([samples[8000:28000], samples[24000:]])
    found = dict(recognizer.transcribe_many(parts))
    assert list(found) == parts
    for part, one, other in zip(parts, recognizer.transcribe(list(parts)), expected, strict=True):
        assert one.id == "a"
        assert one.duration_s == other.duration_s
        same(one, other)
        result = found[part]
        assert isinstance(result, Transcript)
        same(result, other)
    outside = AudioPart(tmp_path / "a.wav", 2.0, 4.0)
    assert isinstance(dict(recognizer.transcribe_many([outside]))[outside], AudioError)


def test_recordings_have_lists_of_their_own(recognizer: Recognizer, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.wav" for name in "abcd"]
    for number, path in enumerate(paths):
        soundfile.write(path, sound(1.0, number), 16000)
    contact = EntityCatalog.from_mapping({"contact": ["maja novak"]})
    stranger = EntityCatalog.from_mapping({"stranger": ["x"]})
    own = {paths[0]: contact, paths[1]: EntityCatalog.empty(), paths[3]: stranger}
    found = dict(recognizer.transcribe_many(paths, entities=own))
    assert list(found) == paths
    for path in paths[:3]:
        result = found[path]
        assert isinstance(result, Transcript)
        same(result, recognizer.transcribe(path, entities=own.get(path)))
    assert isinstance(found[paths[3]], EntityListError)
    with pytest.raises(EntityListError, match="stranger"):
        next(recognizer.transcribe_many(paths, entities=stranger))


def test_a_damaged_end_drops_the_pieces_that_were_decoded(
    recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch, batches: list[Any]
) -> None:
    def read(path: Path, max_s: float, rate: int, *part: Any) -> Iterator[tuple[float, Samples]]:
        for number in range(3):
            yield number * 1.0, sound(1.0, number)
        if path.stem == "bad":
            raise AudioError("bad.wav is cut short", "3 s", "copy it again")

    monkeypatch.setattr(asr.recognizer, "read_segments", read)
    found = list(recognizer.transcribe_many([Path("bad.wav"), Path("fine.wav")], batch_s=2.0))
    assert isinstance(found[0][1], AudioError)
    fine = found[1][1]
    assert isinstance(fine, Transcript)
    assert (fine.id, fine.duration_s) == ("fine", 3.0)
    assert [start for batch in batches for owner, start, _ in batch if owner == 0] == [0.0, 1.0]


def test_an_error_of_a_decoder_is_nobodys_recording(
    recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Recognizer, batch: Any, options: Any) -> Any:
        raise VocativeError("a bug", "none", "mend it")

    monkeypatch.setattr(Recognizer, "_decode", fail)
    with pytest.raises(VocativeError, match="a bug"):
        list(recognizer._run([sound(1.0, 0)], [None], [None], 16000, None, 0.5))


def test_audio_that_cannot_be_used(recognizer: Recognizer) -> None:
    spoilt = sound(1.0, 0)
    spoilt[5] = np.nan
    with pytest.raises(AudioError, match="NaN"):
        recognizer.transcribe(spoilt)
    for unusable in (np.zeros(0, np.float32), np.zeros(399, np.float32), None, np.zeros((3, 4, 5))):
        with pytest.raises(AudioError):
            recognizer.transcribe(unusable)


def test_silence_and_the_shortest_recording(recognizer: Recognizer) -> None:
    for samples in (np.zeros(16000, np.float32), sound(0.1, 0)[:400], np.zeros(400, np.int16)):
        for entities in (None, LISTS):
            result = recognizer.transcribe(samples, entities=entities)
            assert result.duration_s == len(samples) / 16000
            for found in result.hypotheses:
                check_hypothesis(found, result.duration_s)
    short, long = recognizer.transcribe([sound(0.1, 0)[:400], sound(3.0, 0)], entities=LISTS)
    same(short, recognizer.transcribe(sound(0.1, 0)[:400], entities=LISTS))
    same(long, recognizer.transcribe(sound(3.0, 0), entities=LISTS))


def test_lists_that_cannot_be_used(recognizer: Recognizer, tmp_path: Path) -> None:
    for unusable, says in (
        ({"stranger": ["maja"]}, "class 'stranger'"),
        ({"contact": ["漢字"]}, "no entry of class 'contact' encodes"),
        ({"contact": []}, "empty list"),
        (tmp_path / "none.yaml", "none.yaml"),
    ):
        with pytest.raises(EntityListError, match=says):
            recognizer.transcribe(sound(0.5, 0), entities=unusable)
    report = recognizer.report({"contact": ["maja", "漢字"]})
    assert report.counts() == {"ok": 1, "partly": 0, "failed": 1}
    assert recognizer.report(None).counts() == {"ok": 0, "partly": 0, "failed": 0}


def test_lists_are_compiled_once(recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    encode = encode_catalog

    def count(*values: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return encode(*values, **named)

    monkeypatch.setattr(asr.knowledge, "encode_catalog", count)
    monkeypatch.setattr(asr.knowledge, "MAX_LISTS", 2)
    recognizer._knowledge._lists.clear()
    lists = [{"contact": [name]} for name in ("maja", "anna", "bo")]
    for entities in (lists[0], lists[0], lists[1], lists[2], lists[2], lists[0]):
        recognizer.transcribe([sound(0.2, 0)] * 3, entities=entities)
    assert calls == 4, "the oldest of three is made again"
    assert len(recognizer._knowledge._lists) == 2
