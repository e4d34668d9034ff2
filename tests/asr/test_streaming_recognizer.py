"""Streams on tiny random models: whatever the weights are, a stream gives what the whole recording gives."""

from __future__ import annotations

import io
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import asr.cli.stream
from asr import Recognizer, StreamingRecognizer
from asr.bundle import save_bundle
from asr.decoding_config import DecodingConfig
from asr.families import load_family
from asr.families.ctc.emitter import CTCEmitter
from asr.features import FeatureConfig, FeatureNormaliser, fbank
from asr.streaming import EndpointConfig, Partial
from decoding.frame_sync import BeamSearch
from decoding.result import Transcript, Word
from lm.errors import AudioError, ConfigError, DataError, EntityListError
from lm.kneser_ney import train_arpa
from lm.model_files import make_language_model, save_language_model
from lm.tokenizer import Tokenizer

Samples = NDArray[np.float32]
BLOCKS = {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32}
ENCODER = {**BLOCKS, "kernel": 3, "chunk": 4, "left_chunks": 2}
TINY: dict[str, dict[str, Any]] = {
    "factorized": {"encoder": ENCODER, "predictor": BLOCKS, "blank_width": 8},
    "transducer": {"encoder": ENCODER, "joint_width": 16},
    "ctc": {"encoder": ENCODER},
}
LISTS: dict[str, list[Any]] = {
    "contact": ["Maja Novak", "Jim", "Zoe", "Li", "Wu", {"text": "Bo II", "spoken": ["bo", "bob"]}],
    "city": ["Ulm", "Bonn", "Rio"],
}


def sound(seconds: float, seed: int, quiet: tuple[float, float] = (0.0, 0.0)) -> Samples:
    """Noisy tones, a new one each 0.1 s; nothing but zeros between the times ``quiet``."""
    luck = np.random.default_rng(seed)
    time_s = np.arange(1600) / 16000
    parts = [
        np.sin(2 * np.pi * luck.uniform(100, 4000) * time_s) * luck.uniform(0.05, 0.5)
        + luck.standard_normal(1600) * 10 ** luck.uniform(-4, -1)
        for _ in range(round(seconds * 10))
    ]
    samples = (np.concatenate(parts) / 2).astype(np.float32)
    samples[round(quiet[0] * 16000) : round(quiet[1] * 16000)] = 0.0
    return samples


def make(name: str, folder: Path, config: dict[str, Any] | None = None) -> Recognizer:
    """A model that says something in many frames, and nothing in silence."""
    tokenizer = Tokenizer.train(
        ["call maja novak", "abcdefghijklmnopqrstuvwxyz"] * 20, 40, ["contact", "city"]
    )
    torch.manual_seed(2)
    values = config or TINY[name]
    weights = load_family(name, values, tokenizer, "here").model.state_dict()
    heard = [fbank(torch.from_numpy(sound(20.0, 9)), FeatureConfig())]
    for part, value in FeatureNormaliser.estimate(heard).state_dict().items():
        weights[f"normaliser.{part}"] = value
    if name == "factorized":
        weights["acoustic.weight"] *= 12
        weights["blank_output.bias"] += 2.5
    output = {"transducer": "joint.output", "ctc": "output"}.get(name)
    if output:
        weights[f"{output}.weight"] *= 8
        weights[f"{output}.bias"][-1] += 4.0
        weights[f"{output}.bias"][tokenizer.pieces.index("▁")] += 2.0
    whole = {"family": name, "model": values, "decoding": {"class_bonus": 4.0, "segment_s": 100.0}}
    return Recognizer.load(save_bundle(folder / name, whole, weights, tokenizer.model_bytes, "# Tiny"))


@pytest.fixture(scope="module")
def recognizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recognizer]:
    folder = tmp_path_factory.mktemp("models")
    return {name: make(name, folder) for name in TINY}


def pieces(samples: Samples, luck: random.Random) -> list[Samples]:
    found = []
    while len(samples):
        size = luck.choice([1, 1600, 5000, 40_000])
        found.append(samples[:size])
        samples = samples[size:]
    return found


def same_words(one: tuple[Word, ...], other: tuple[Word, ...]) -> None:
    assert [w.text for w in one] == [w.text for w in other]
    for mine, theirs in zip(one, other, strict=True):
        assert (mine.start_s, mine.end_s) == pytest.approx((theirs.start_s, theirs.end_s), abs=2e-3)
        assert mine.confidence == pytest.approx(theirs.confidence, abs=1e-3)


def check_way(partials: list[Partial], final: Transcript) -> None:
    """What was called stable stayed as it was to the end."""
    words, entities = list[tuple[str, float, float]](), tuple[Any, ...]()
    for partial in partials:
        stable = [(w.text, w.start_s, w.end_s) for w in partial.stable]
        assert stable[: len(words)] == words
        assert partial.entities[: len(entities)] == entities
        words, entities = stable, partial.entities
    assert [(w.text, w.start_s, w.end_s) for w in final.words[: len(words)]] == words
    assert final.entities[: len(entities)] == entities


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(sorted(TINY)),
    seed=st.integers(0, 10_000),
    lists=st.booleans(),
    phrases=st.booleans(),
)
def test_a_stream_without_cuts_is_the_recording(
    recognizers: dict[str, Recognizer],
    name: str,
    seed: int,
    lists: bool,
    phrases: bool,
) -> None:
    recognizer, samples = recognizers[name], sound(3.0, seed, (1.5, 2.0))
    options = recognizer.decoding
    if phrases:
        options = options.model_copy(update={"biasing": "phrases", "phrase_bonus": 2.0})
    entities = LISTS if lists else None
    whole = recognizer.transcribe(samples, entities=entities, options=options)
    stream = StreamingRecognizer(recognizer, entities=entities, options=options, endpoint=None)
    partials = [stream.push(piece) for piece in pieces(samples, random.Random(seed))]
    final = stream.finish()
    assert (final.id, final.text, final.duration_s) == ("stream", whole.text, whole.duration_s)
    same_words(final.words, whole.words)
    assert [(e.written, e.start, e.end, e.id) for e in final.entities] == [
        (e.written, e.start, e.end, e.id) for e in whole.entities
    ]
    assert final.hypotheses[0].score == pytest.approx(whole.hypotheses[0].score, abs=1e-3)
    assert final.hypotheses[0].scores == pytest.approx(whole.hypotheses[0].scores, abs=5e-3)
    if name != "ctc":  # of which the end of the list may differ
        assert [h.text for h in final.hypotheses] == [h.text for h in whole.hypotheses]
    check_way(partials, final)


def test_a_stream_is_heard_in_its_context(recognizers: dict[str, Recognizer], tmp_path: Path) -> None:
    recognizer, samples, context = recognizers["ctc"], sound(3.0, 1), {"hour": 7}
    torch.manual_seed(0)
    shape = {"width": 16, "fields": [{"kind": "cyclic", "name": "hour", "period": 24}]}
    model = make_language_model("contextual", shape, recognizer.tokenizer, "here")
    save_language_model(tmp_path / "lm.safetensors", "contextual", model.config, model, recognizer.tokenizer)
    recognizer.language_models.add("hours", tmp_path / "lm.safetensors")
    changes = {"fusion": {"lm": "hours", "weight": 2.0}, "rescoring": {"lm": "hours"}}
    options = recognizer.decoding.changed(changes, "here")
    scores = []
    for said in (context, None):
        stream = StreamingRecognizer(recognizer, context=said, options=options, endpoint=None)
        for piece in pieces(samples, random.Random(0)):
            stream.push(piece)
        found, whole = stream.finish(), recognizer.transcribe(samples, context=said, options=options)
        assert found.text == whole.text
        assert found.hypotheses[0].score == pytest.approx(whole.hypotheses[0].score, abs=1e-3)
        scores.append(found.hypotheses[0].score)
    assert scores[0] != pytest.approx(scores[1], abs=1e-2)
    with pytest.raises(ConfigError, match="no language model takes any"):
        StreamingRecognizer(recognizer, context=context)


def test_the_command_takes_a_language_model_and_a_context(
    recognizers: dict[str, Recognizer],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recognizer, samples = recognizers["ctc"], sound(3.0, 1)
    soundfile.write(tmp_path / "call.wav", (samples * 32767).astype("<i2"), 16000)
    torch.manual_seed(0)
    shape = {"width": 16, "fields": [{"kind": "cyclic", "name": "hour", "period": 24}]}
    model = make_language_model("contextual", shape, recognizer.tokenizer, "here")
    save_language_model(
        tmp_path / "when.safetensors", "contextual", model.config, model, recognizer.tokenizer
    )
    monkeypatch.setattr(asr.cli.stream, "load_recognizer", lambda model, device: recognizer)
    call = str(tmp_path / "call.wav"), tmp_path
    lm: dict[str, Any] = {"whole": True, "lm": tmp_path / "when.safetensors", "lm_weight": 4.0}
    assert asr.cli.stream.stream(*call, **lm, context=["hour=7"]) == 0
    options = recognizer.decoding.changed({"fusion": {"lm": "when", "weight": 4.0}}, "here")
    expected = recognizer.transcribe(tmp_path / "call.wav", context={"hour": 7}, options=options).text
    assert capsys.readouterr().out.rstrip("\n").split("\t")[-1] == expected
    for wrong in ("hour", "=7", "hour=["):
        with pytest.raises(ConfigError, match="--context"):
            asr.cli.stream.stream(*call, **lm, context=[wrong])
    with pytest.raises(DataError, match="houre"):
        asr.cli.stream.stream(*call, **lm, context=["houre=7"])


def test_most_words_are_stable_before_the_end_and_entities_among_them(
    recognizers: dict[str, Recognizer],
) -> None:
    stable = words = entities = tentative = 0
    for seed in range(5):
        stream = StreamingRecognizer(recognizers["factorized"], entities=LISTS, endpoint=None)
        for piece in np.array_split(sound(5.0, seed), 25):
            partial = stream.push(piece)
            tentative += len(partial.tentative)
            assert partial.text.startswith(partial.stable_text)
        stable += len(partial.stable)
        entities += len(partial.entities)
        for span in partial.entities:
            assert span.text == " ".join(w.text for w in partial.stable[span.start : span.end])
        words += len(stream.finish().words)
    assert 0.4 * words < stable < words
    assert entities > 3
    assert tentative > 0


def talk(gaps: list[tuple[float, float]], seconds: float, seed: int = 1) -> Samples:
    samples = sound(seconds, seed)
    for first, last in gaps:
        samples[round(first * 16000) : round(last * 16000)] = 0.0
    return samples


def test_pauses_cut_a_stream_and_times_go_on(recognizers: dict[str, Recognizer]) -> None:
    """Each utterance is what a search over its encoder frames alone finds, however samples are pushed."""
    recognizer = recognizers["ctc"]
    samples = talk([(2.0, 3.6), (5.0, 5.5), (6.5, 9.0)], 11.0)
    runs = []
    for sizes in (1234, 16000, len(samples)):
        stream = StreamingRecognizer(recognizer, name="call")
        found = [
            t for first in range(0, len(samples), sizes) for t in stream.push(samples[first:][:sizes]).finals
        ]
        runs.append([*found, stream.finish()])
    assert runs[0] == runs[1] == runs[2]
    first, second, third = runs[0]
    assert [t.id for t in runs[0]] == ["call-1", "call-2", "call-3"]
    assert 2.8 <= first.duration_s <= 3.3  # 0.8 s of silence, heard at the end of a chunk
    assert 7.3 <= first.duration_s + second.duration_s <= 7.8
    assert first.words[-1].end_s <= first.duration_s < 3.5 < second.words[0].start_s
    assert second.words[-1].end_s <= first.duration_s + second.duration_s < 8.9 < third.words[0].start_s
    assert sum(t.duration_s for t in runs[0]) == pytest.approx(11.0, abs=2e-3)
    encoder, model = recognizer.family.model.encoder, recognizer.family.model
    features = fbank(torch.from_numpy(samples), recognizer.features)
    with torch.no_grad():
        encoded, _ = encoder(model.normaliser(features[None]), torch.tensor([len(features)]))  # type: ignore[operator]
        at = 0
        for transcript in runs[0]:
            end = round((at * 0.04 + transcript.duration_s) / 0.04)
            part = encoded[:, at:end]
            emitter = CTCEmitter(model, part, torch.tensor([part.shape[1]]))  # type: ignore[arg-type]
            best = BeamSearch(emitter, recognizer.decoding.search).run()[0][0]
            assert recognizer.tokenizer.decode(best.tokens) == transcript.text
            assert best.score == pytest.approx(transcript.hypotheses[0].score, abs=1e-3)
            assert transcript.words[0].start_s == pytest.approx((at + best.frames[0]) * 0.04, abs=2e-3)
            at = end


def test_silence_starts_the_search_anew_and_says_nothing(recognizers: dict[str, Recognizer]) -> None:
    stream = StreamingRecognizer(recognizers["ctc"], endpoint=EndpointConfig(silence_s=1.0))
    partials = [stream.push(np.zeros(8000, np.float32)) for _ in range(10)]
    assert all(p == Partial() for p in partials)
    assert stream._utterance.start_s > 3.9
    partials = [stream.push(piece) for piece in np.array_split(sound(2.0, 3), 10)]
    assert partials[-1].text
    final = stream.finish()
    assert final.text.startswith(partials[-1].stable_text)
    assert final.words[0].start_s > 4.9


def test_nobody_talks_longer_than_allowed(recognizers: dict[str, Recognizer]) -> None:
    for name, recognizer in recognizers.items():
        stream = StreamingRecognizer(recognizer, endpoint=EndpointConfig(longest_s=1.0, pause_s=9.0))
        finals = list(stream.push(sound(3.5, 4)).finals)
        last = stream.finish()
        assert [t.duration_s for t in finals] == pytest.approx([1.12, 1.12, 1.12], abs=1e-3), name
        assert last.duration_s == pytest.approx(3.5 - 3.36, abs=2e-3)
        times = [w.start_s for t in (*finals, last) for w in t.words]
        assert times == sorted(times)


def test_other_rates_integers_and_tensors(recognizers: dict[str, Recognizer]) -> None:
    recognizer = recognizers["factorized"]
    low = (sound(4.0, 3)[::2] * 32767).astype(np.int16)
    whole = recognizer.transcribe(low, sample_rate=8000)
    for give in (lambda x: x, lambda x: torch.from_numpy(x), lambda x: x.astype(np.float64) / 32768):
        stream = StreamingRecognizer(recognizer, endpoint=None)
        for piece in np.array_split(low, 13):
            stream.push(give(piece), sample_rate=8000)
        final = stream.finish()
        assert (final.text, final.duration_s) == (whole.text, whole.duration_s)
        same_words(final.words, whole.words)


def test_what_cannot_be_pushed_changes_nothing(recognizers: dict[str, Recognizer]) -> None:
    samples = sound(3.0, 2)
    spoilt = samples[:1600].copy()
    spoilt[7] = np.nan
    bad: list[tuple[Any, int | None, str]] = [
        (spoilt, None, "1 of 1600 samples are NaN"),
        (np.zeros(0, np.float32), None, r"shape \(0,\); expected \(samples,\)"),
        (np.zeros((2, 1600), np.float32), None, r"shape \(2, 1600\); .* average the channels"),
        (None, None, "shape"),
        (samples[:10] * 32768, None, "divide by 32768"),
        (np.array(["a"]), None, "type"),
        (samples[:1600], 8000, "8000 Hz; expected 16000 Hz"),
        (samples[:1600], 5, "sample rate 5 Hz"),
    ]
    recognizer = recognizers["factorized"]
    expected = recognizer.transcribe(samples)
    stream = StreamingRecognizer(recognizer, endpoint=None)
    for number, piece in enumerate(np.array_split(samples, 4)):
        for unusable, rate, says in bad if number else bad[:-2]:
            with pytest.raises(AudioError, match=says) as caught:
                stream.push(unusable, rate)
            assert "\n" not in str(caught.value)
        stream.push(piece)
    final = stream.finish()
    assert final.text == expected.text
    assert final.duration_s == expected.duration_s
    with pytest.raises(AudioError, match="after the end of a stream"):
        stream.push(samples)
    with pytest.raises(AudioError, match="twice"):
        stream.finish()
    short = StreamingRecognizer(recognizer)
    assert short.push(samples[:399]) == Partial()
    with pytest.raises(AudioError, match="399 samples"):
        short.finish()
    with pytest.raises(EntityListError, match="class 'stranger'"):
        StreamingRecognizer(recognizer, entities={"stranger": ["maja"]})
    classes = DecodingConfig(biasing="classes")
    with pytest.raises(ConfigError, match="no language model knows classes"):
        StreamingRecognizer(recognizers["ctc"], entities=LISTS, options=classes)


def test_a_model_that_hears_the_whole_cannot_stream(tmp_path: Path) -> None:
    recognizer = make("ctc", tmp_path, {"encoder": {**BLOCKS, "kernel": 3}})
    with pytest.raises(ConfigError, match="model.encoder.chunk above 0"):
        StreamingRecognizer(recognizer)


def test_lattices_in_a_stream_end_with_its_utterances(
    recognizers: dict[str, Recognizer], tmp_path: Path
) -> None:
    """What a lattice remembers is bounded by the longest utterance; without cuts nothing would bound it."""
    recognizer = recognizers["ctc"]
    rescoring = {"lm": "bigram", "over": "lattice"}
    options = recognizer.decoding.changed({"rescoring": rescoring}, "here")
    with pytest.raises(ConfigError, match=r"stream without cuts.*rescoring\.over=nbest"):
        StreamingRecognizer(recognizer, options=options, endpoint=None)
    silent = recognizer.decoding.changed({"rescoring": rescoring | {"weight": 0.0}}, "here")
    StreamingRecognizer(recognizer, options=silent, endpoint=None)
    text = [[recognizer.tokenizer.pieces[i] for i in (3, 5, 7, 5, 9)]] * 4
    train_arpa(text, 2, (path := tmp_path / "bigram.arpa"))
    recognizer.language_models.add("bigram", path)
    stream = StreamingRecognizer(recognizer, options=options, endpoint=EndpointConfig(longest_s=1.0))
    sizes, finals = [], []
    for seed in range(5):
        finals += stream.push(sound(1.0, seed)).finals
        search = stream._utterance._search
        sizes.append(len(search._trace.steps))
        assert search._standing is not None
    assert max(sizes) <= 25  # frames of 40 ms
    assert len(finals) >= 3
    assert all("rescoring" in final.hypotheses[0].scores for final in finals)


@pytest.mark.parametrize("name", sorted(TINY))
def test_the_end_of_a_stream_is_that_of_the_recording(
    recognizers: dict[str, Recognizer], tmp_path: Path, name: str
) -> None:
    recognizer, samples = recognizers[name], sound(3.0, 4)
    pieces_ = recognizer.tokenizer.pieces
    luck = random.Random(1)
    train_arpa([luck.choices(pieces_[3:], k=6) for _ in range(30)], 2, tmp_path / "ending.arpa")
    recognizer.language_models.add("ending", tmp_path / "ending.arpa")
    options = recognizer.decoding.changed({"fusion": {"lm": "ending", "end": True}}, "here")
    whole = recognizer.transcribe(samples, options=options).hypotheses[0]
    stream = StreamingRecognizer(recognizer, options=options, endpoint=None)
    for piece in pieces(samples, luck):
        stream.push(piece)
    final = stream.finish().hypotheses[0]
    assert final.text == whole.text
    assert final.scores["end"] == pytest.approx(whole.scores["end"], abs=1e-4)
    assert final.scores["end"] < 0
    assert final.score == pytest.approx(whole.score, abs=1e-3)


def test_delays_are_told(recognizers: dict[str, Recognizer]) -> None:
    stream = StreamingRecognizer(recognizers["ctc"])
    assert stream.stats.real_time_factor == 0.0
    samples = talk([(2.0, 3.6)], 5.0)
    words: list[Word] = []
    now, first_shown = 0.0, dict[int, float]()
    for piece in np.array_split(samples, 50):
        partial = stream.push(piece)
        now += 0.1
        words += [word for final in partial.finals for word in final.words]
        for place in range(len(words) + len(partial.stable) + len(partial.tentative)):
            first_shown.setdefault(place, now)
    words += stream.finish().words
    stats = stream.stats
    assert stats.audio_s == 5.0
    assert 0 < stats.real_time_factor < 1
    # The last of 4 x 4 feature frames of 10 ms ends 17.5 ms behind its start.
    assert stats.latency_s == stream.latency_s == pytest.approx(0.1675)
    assert [word.text for word in stats.words] == [word.text for word in words]
    for place, (delay, word) in enumerate(zip(stats.words, words, strict=True)):
        assert delay.shown_s <= delay.stable_s
        assert delay.shown_s >= first_shown[place] - word.end_s - 1e-3
        assert delay.stable_s <= 5.0 - word.end_s + stats.busy_s
    assert min(delay.stable_s for delay in stats.words) < 1.5


def test_a_long_stream_is_forgotten_behind_its_utterances(recognizers: dict[str, Recognizer]) -> None:
    stream = StreamingRecognizer(recognizers["ctc"])
    sizes = []
    for number in range(12):
        stream.push(talk([(1.0, 3.0)], 3.0, seed=number % 2))
        search = stream._utterance._search
        sizes.append((len(search._trace.steps), len(search._trace.past), len(stream._stream.caches)))
    assert sizes[2:4] == sizes[-2:]
    assert stream._utterances >= 11


def test_the_command_prints_utterances_of_files_and_pipes(
    recognizers: dict[str, Recognizer],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    monkeypatch.setattr(asr.cli.stream, "load_recognizer", lambda model, device: recognizers["ctc"])
    samples = (talk([(1.5, 3.0)], 4.0) * 32767).astype("<i2")
    soundfile.write(tmp_path / "call.wav", samples, 16000)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(samples.tobytes())))
    expected = recognizers["ctc"].transcribe(tmp_path / "call.wav").words
    lines = []
    for file in (str(tmp_path / "call.wav"), "-"):
        assert asr.cli.stream.stream(file, tmp_path) == 0
        out, err = capfdbinary.readouterr()
        assert b"asr: 4.0 s, 0." in err
        lines.append(out.decode().splitlines())
    assert lines[0] == lines[1]
    assert len(lines[0]) == 2
    assert lines[0][0].split("\t")[0] == f"{expected[0].start_s:.2f}"
    assert asr.cli.stream.stream(str(tmp_path / "call.wav"), tmp_path, whole=True) == 0
    assert capfdbinary.readouterr().out.decode().split("\t")[2].split() == [w.text for w in expected]
    whole_file = io.BytesIO((tmp_path / "call.wav").read_bytes())
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=whole_file))
    with pytest.raises(AudioError, match="a file on standard input"):
        asr.cli.stream.stream("-", tmp_path)


def test_ctrl_c_before_any_sample_is_an_end_like_another(
    recognizers: dict[str, Recognizer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def nothing(size: int) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(asr.cli.stream, "load_recognizer", lambda model, device: recognizers["ctc"])
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=SimpleNamespace(read=nothing)))
    assert asr.cli.stream.stream("-", tmp_path) == 130
