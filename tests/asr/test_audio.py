from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.audio import as_samples, audio_info, read_audio, read_segments
from lm.errors import AudioError, ConfigError


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def noise(seconds: float, rate: int = 16000, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * rate))).astype(np.float32)


def write_sphere(path: Path, samples: np.ndarray, rate: int, big_endian: bool = False) -> None:
    """NIST 1A header written by hand; samples (frames,) or (frames, channels) int16."""
    samples = samples.reshape(len(samples), -1)
    fields = [
        f"channel_count -i {samples.shape[1]}",
        f"sample_rate -i {rate}",
        "sample_n_bytes -i 2",
        "sample_sig_bits -i 16",
        "sample_coding -s3 pcm",
        f"sample_byte_format -s2 {'10' if big_endian else '01'}",
        f"sample_count -i {len(samples)}",
        "end_head",
    ]
    header = "NIST_1A\n   1024\n" + "\n".join(fields) + "\n"
    path.write_bytes(
        header.encode().ljust(1024, b"\0") + samples.astype(">i2" if big_endian else "<i2").tobytes()
    )


LOSSLESS = {
    "a.wav": {},
    "f.wav": {"subtype": "FLOAT"},
    "a.flac": {},
    "a.aiff": {},
    "a.au": {},
    "a.sph": {"format": "NIST"},
}
LOSSY = {"a.ogg": {}, "a.opus": {"format": "OGG", "subtype": "OPUS"}, "a.mp3": {}}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_give_the_samples_that_were_written(tmp_path: Path, name: str) -> None:
    wanted = noise(1.0)
    sf.write(tmp_path / name, wanted, 16000, **LOSSLESS[name])
    got = read_audio(tmp_path / name)
    assert got.dtype == np.float32
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, atol=1 / 32768)


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_formats_keep_length_and_tone(tmp_path: Path, name: str) -> None:
    sf.write(tmp_path / name, tone(1.0, 16000), 16000, **LOSSY[name])
    got = read_audio(tmp_path / name)
    assert len(got) == 16000
    assert np.abs(np.fft.rfft(got)).argmax() == 440
    assert np.corrcoef(got[2000:-2000], tone(1.0, 16000)[2000:-2000])[0, 1] > 0.99


@pytest.mark.parametrize("big_endian", [False, True])
def test_sphere_written_by_hand_stereo(tmp_path: Path, big_endian: bool) -> None:
    left, right = np.arange(800), -3 * np.arange(800)
    write_sphere(tmp_path / "a.wav", np.stack([left, right], 1), 16000, big_endian)  # LDC names sphere .wav
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), -np.arange(800) / 32768, atol=1e-6)
    assert audio_info(tmp_path / "a.wav").format == "NIST"


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_any_rate_becomes_16_khz_with_the_same_tone(tmp_path: Path, rate: int) -> None:
    sf.write(tmp_path / "a.wav", tone(1.0, rate), rate)
    got = read_audio(tmp_path / "a.wav")
    assert len(got) == 16000
    np.testing.assert_allclose(got[500:-500], tone(1.0, 16000)[500:-500], atol=2e-3)
    assert len(read_audio(tmp_path / "a.wav", 8000)) == 8000


def test_channels_are_averaged(tmp_path: Path) -> None:
    one, two = noise(0.5, seed=1), noise(0.5, seed=2)
    sf.write(tmp_path / "a.wav", np.stack([one, two, one * 0], axis=1), 16000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), (one + two) / 3, atol=1e-6)
    assert audio_info(tmp_path / "a.wav").channels == 3


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.opus", "a.mp3"])
def test_a_part_equals_that_part_of_the_whole(tmp_path: Path, name: str) -> None:
    sf.write(tmp_path / name, noise(2.0), 16000, **(LOSSY | LOSSLESS)[name])
    part = read_audio(tmp_path / name, start_s=0.5, end_s=1.25)
    np.testing.assert_allclose(part, read_audio(tmp_path / name)[8000:20000], atol=1e-4)


def test_a_part_outside_the_recording_is_an_error(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", noise(1.0), 16000)
    assert len(read_audio(tmp_path / "a.wav", start_s=0.5, end_s=1.01)) == 8000
    for start, end in [(0.5, 2.0), (1.5, None), (0.6, 0.5), (-0.1, 0.5)]:
        with pytest.raises(AudioError, match=r"1\.00 s"):
            read_audio(tmp_path / "a.wav", start_s=start, end_s=end)


def test_audio_info(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.flac", np.zeros((11025, 2)), 44100)
    info = audio_info(tmp_path / "a.flac")
    assert (info.duration_s, info.sample_rate, info.channels, info.format) == (0.25, 44100, 2, "FLAC")


# Bad input: one case each.


def refused(path: Path, *words: str, header: bool = True) -> None:
    """Reading, segmenting and (where the header shows it) looking all give the one line with these words."""
    reads = [read_audio, lambda p: list(read_segments(p, 10.0))] + ([audio_info] if header else [])
    for read in reads:
        with pytest.raises(AudioError) as caught:
            read(path)
        line = str(caught.value)
        assert "\n" not in line
        assert "; expected " in line
        for word in (str(path), *words):
            assert word in line


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "no.wav", "does not exist", "check the path")


def test_directory(tmp_path: Path) -> None:
    refused(tmp_path, "is a directory")


def test_device() -> None:
    refused(Path("/dev/null"), "pipe or a device")


def test_name_too_long(tmp_path: Path) -> None:
    refused(tmp_path / ("a" * 3000), "name too long")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    refused(tmp_path / "a.wav", "empty (0 bytes)")


def test_zero_samples(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", np.zeros(0), 16000)
    refused(tmp_path / "a.wav", "holds no samples")


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.flac", "a.txt", "a.raw"])
def test_not_audio(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"This is not audio at all. " * 200)
    refused(tmp_path / name, "corrupt or not audio")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sf.write(tmp_path / "a.wav", noise(1.0), 16000)

    def deny(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)  # chmod does not stop root, who may run the tests
    refused(tmp_path / "a.wav", "may not be read", "chmod")


@pytest.mark.parametrize("name", LOSSLESS | LOSSY)
def test_truncated(tmp_path: Path, name: str) -> None:
    sf.write(tmp_path / name, noise(5.0), 16000, **(LOSSLESS | LOSSY)[name])
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2 + 3])
    refused(tmp_path / name, "cut short", "s could be read")
    with pytest.raises(AudioError) as caught:
        read_audio(tmp_path / name)
    seconds = float(str(caught.value).split(": ")[1].split(" s")[0])
    assert 1.5 < seconds < 3.0
    if name != "a.ogg" and name != "a.opus":
        assert "expected the 5.0" in str(caught.value)


def test_truncated_by_20_ms_is_seen_and_by_4_bytes_is_not(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", noise(1.0), 16000)
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(whole[:-640])
    refused(tmp_path / "a.wav", "0.98 s could be read", "1.00 s")
    (tmp_path / "a.wav").write_bytes(whole[:-4])
    assert len(read_audio(tmp_path / "a.wav")) == 15998


def test_damage_in_the_middle_of_a_flac(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.flac", noise(5.0), 16000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 20000] = bytes(20000)
    (tmp_path / "a.flac").write_bytes(data)
    refused(tmp_path / "a.flac", "damaged", header=False)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF])
def test_wav_written_to_a_pipe_has_no_length_and_is_no_error(tmp_path: Path, size: int) -> None:
    sf.write(tmp_path / "a.wav", noise(1.0), 16000)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[40:44] = size.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(data)
    assert len(read_audio(tmp_path / "a.wav")) == 16000


def test_flac_without_a_length(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.flac", noise(1.0), 16000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(data)
    refused(tmp_path / "a.flac", "does not say how long")


def without_first_frame(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[data.find(data[:2], 4) :])


def test_mp3_without_a_length(tmp_path: Path) -> None:
    quiet_then_loud = np.concatenate([np.zeros(32000, np.float32), noise(4.0, level=0.3)])
    sf.write(tmp_path / "v.mp3", quiet_then_loud, 16000, bitrate_mode="VARIABLE")
    without_first_frame(tmp_path / "v.mp3")
    refused(tmp_path / "v.mp3", "mp3 of varying bit rate")
    sf.write(tmp_path / "c.mp3", noise(4.0), 16000, bitrate_mode="CONSTANT", compression_level=0.5)
    without_first_frame(tmp_path / "c.mp3")
    assert len(read_audio(tmp_path / "c.mp3")) == pytest.approx(64000, abs=2304)


def test_mp3_after_a_tag(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.mp3", noise(2.0), 16000)
    data = (tmp_path / "a.mp3").read_bytes()
    tag = b"ID3\x04\0\0" + bytes([0, 0, 0x10, 0]) + bytes(0x10 << 7)
    (tmp_path / "a.mp3").write_bytes(tag + data)
    assert len(read_audio(tmp_path / "a.mp3")) == 32000
    (tmp_path / "a.mp3").write_bytes(tag + data[: len(data) // 2])
    refused(tmp_path / "a.mp3", "cut short")


def test_nan_and_infinite_samples_are_counted(tmp_path: Path) -> None:
    samples = np.stack([noise(40.0), noise(40.0)], axis=1)
    samples[5, 0], samples[5, 1], samples[600_000, 1] = np.nan, np.nan, np.inf
    sf.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    refused(tmp_path / "a.wav", "2 of 640000 samples are NaN or infinite", header=False)


def test_float_samples_of_another_scale(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", noise(1.0) * 32768, 16000, subtype="FLOAT")
    refused(tmp_path / "a.wav", "samples reach", "divide by 32768", header=False)


def test_too_short(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", noise(0.0249), 16000)
    refused(tmp_path / "a.wav", "lasts 24.9 ms", "at least 25 ms", header=False)
    sf.write(tmp_path / "a.wav", noise(0.025), 16000)
    assert len(read_audio(tmp_path / "a.wav")) == 400


def test_absurd_rate(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", noise(1.0), 3)
    refused(tmp_path / "a.wav", "sample rate 3 Hz")


def test_what_libsndfile_cannot_open_goes_to_librosa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sf.write(tmp_path / "a.wav", np.stack([noise(1.0), noise(1.0)], 1), 16000)
    wanted = read_audio(tmp_path / "a.wav")

    class Fails(sf.SoundFile):
        def __init__(self, *_: object, **__: object) -> None:
            raise sf.LibsndfileError(1)

    monkeypatch.setattr(sf, "SoundFile", Fails)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), wanted, atol=1e-4)
    assert audio_info(tmp_path / "a.wav").duration_s == 1.0


# Segments.


def speech_like(seconds: float, pauses_s: list[float], rate: int) -> np.ndarray:
    samples = noise(seconds, rate)
    for pause in pauses_s:
        samples[int((pause - 0.15) * rate) : int((pause + 0.15) * rate)] *= 1e-3
    return samples


@pytest.mark.parametrize("rate", [16000, 22050, 8000])
@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_segments_cut_in_the_pauses_and_join_to_the_whole(tmp_path: Path, rate: int, name: str) -> None:
    pauses = [9.0, 18.2, 26.5]
    sf.write(tmp_path / name, speech_like(35.0, pauses, rate), rate)
    pieces = list(read_segments(tmp_path / name, 10.0))
    np.testing.assert_allclose([start for start, _ in pieces], [0.0, *pauses], atol=0.1)
    np.testing.assert_array_equal(np.concatenate([piece for _, piece in pieces]), read_audio(tmp_path / name))
    at = 0
    for start, piece in pieces:
        assert start == at / 16000
        assert 400 <= len(piece) <= 160000
        at += len(piece)


def test_segments_of_a_part(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", speech_like(35.0, [9.0, 18.2, 26.5], 16000), 16000)
    pieces = list(read_segments(tmp_path / "a.wav", 10.0, 16000, 0.5, 30.5))
    np.testing.assert_allclose([start for start, _ in pieces], [0.0, 8.5, 17.7, 26.0], atol=0.1)
    whole = read_audio(tmp_path / "a.wav")
    np.testing.assert_array_equal(np.concatenate([piece for _, piece in pieces]), whole[8000:488000])
    with pytest.raises(AudioError, match=r"the part from 34.0 s to 36.0 s.*35.00 s"):
        list(read_segments(tmp_path / "a.wav", 10.0, 16000, 34.0, 36.0))


@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_short_file_is_one_segment(tmp_path: Path, rate: int) -> None:
    sf.write(tmp_path / "a.wav", noise(10.0, rate), rate)
    ((start, piece),) = read_segments(tmp_path / "a.wav", 10.0)
    assert start == 0.0
    np.testing.assert_array_equal(piece, read_audio(tmp_path / "a.wav"))


@settings(max_examples=25, deadline=None)
@given(extra=st.integers(1, 20000), seed=st.integers(0, 99))
def test_no_segment_is_shorter_than_a_frame(
    tmp_path_factory: pytest.TempPathFactory, extra: int, seed: int
) -> None:
    path = tmp_path_factory.mktemp("segments") / "a.wav"
    sf.write(path, noise((16000 * 2 + extra) / 16000, seed=seed), 16000)
    lengths = [len(piece) for _, piece in read_segments(path, 1.0)]
    assert sum(lengths) == 32000 + extra
    assert min(lengths) >= 400
    assert max(lengths) <= 16000


def test_digital_silence_is_cut_in_its_middle(tmp_path: Path) -> None:
    samples = noise(12.0)
    samples[int(8.0 * 16000) : int(9.0 * 16000)] = 0
    sf.write(tmp_path / "a.wav", samples, 16000)
    _, (start, _) = read_segments(tmp_path / "a.wav", 10.0)
    assert start == pytest.approx(8.5, abs=0.02)


def test_segments_need_a_length(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1 s"):
        list(read_segments(tmp_path / "a.wav", 0.5))


def test_a_long_recording_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """10 min of 48 kHz stereo are 230 MB of float32: the process may not grow by a fifth of that."""
    with sf.SoundFile(tmp_path / "a.wav", "w", 48000, 2, "PCM_16") as file:
        minute = np.tile(noise(1.0, 48000)[:, None], (60, 2))
        for _ in range(10):
            file.write(minute)
    script = """
import resource, sys
import soundfile, soxr
from asr.audio import read_segments
def peak_mb(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak_mb()
total = sum(len(piece) for _, piece in read_segments(sys.argv[1], 30.0))
print(total, peak_mb() - before)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.wav")], capture_output=True, text=True, check=True
    )
    total, grown_mb = run.stdout.split()
    assert int(total) == 10 * 60 * 16000
    assert float(grown_mb) < 46


# Arrays.


@pytest.mark.parametrize(
    ("dtype", "full"),
    [("int16", 32768), ("int32", 2147483648), ("float64", 1), ("float16", 1), ("float32", 1)],
)
def test_arrays_of_any_type_become_float32(dtype: str, full: int) -> None:
    wanted = tone(0.1, 16000)
    got = as_samples((wanted * full).astype(dtype), 16000)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, atol=1e-3)


def test_uint8_is_centred_on_128() -> None:
    np.testing.assert_allclose(as_samples(np.full(400, 192, np.uint8), 16000), 0.5)


def test_two_axes_either_way_and_tensors() -> None:
    one, two = noise(0.1, seed=1), noise(0.1, seed=2)
    wanted = (one + two) / 2
    np.testing.assert_allclose(as_samples(np.stack([one, two]), 16000), wanted, atol=1e-7)
    np.testing.assert_allclose(as_samples(np.stack([one, two], axis=1), 16000), wanted, atol=1e-7)
    tensor = torch.from_numpy(np.stack([one, two])).requires_grad_()
    np.testing.assert_allclose(as_samples(tensor, 16000), wanted, atol=1e-7)
    assert as_samples(torch.zeros(400, dtype=torch.bfloat16), 16000).shape == (400,)
    np.testing.assert_allclose(as_samples(one[None], 16000), one)


def test_arrays_are_resampled() -> None:
    assert as_samples(tone(1.0, 8000), 8000).shape == (16000,)


@pytest.mark.parametrize(
    ("array", "rate", "words"),
    [
        (np.zeros((2, 3, 400)), 16000, "shape (2, 3, 400)"),
        (np.zeros((400, 100)), 16000, "at most 64 channels"),
        (np.zeros(()), 16000, "shape ()"),
        (np.zeros(400, np.int64), 16000, "type int64"),
        (np.zeros(400, bool), 16000, "type bool"),
        (np.array([0.0, np.nan] * 400), 16000, "400 of 800 samples are NaN"),
        (np.full(400, 20000.0), 16000, "divide by 32768"),
        (np.zeros(0), 16000, "lasts 0.0 ms"),
        (np.zeros(399), 16000, "at least 25 ms"),
        (np.zeros(16000), 16, "sample rate 16 Hz"),
    ],
)
def test_arrays_that_are_not_audio(array: np.ndarray, rate: int, words: str) -> None:
    with pytest.raises(AudioError) as caught:
        as_samples(array, rate)
    assert words in str(caught.value)


# The rest.


def test_import_is_light() -> None:
    script = "import sys, asr.audio; print({'soundfile', 'librosa', 'lhotse', 'soxr'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.corpora
@pytest.mark.parametrize(
    "split", ["an4/train", "an4/test", "mini_librispeech/dev", "kathleen/dev", "speech_to_intent/dev",
              "speechocean762/dev", "free_spoken_digit/test", "noise_esc10/all"]
)  # fmt: skip
def test_real_recordings(corpora: Path, split: str) -> None:
    corpus = corpora / split.split("/")[0]
    name = (corpora / split / "wav.scp").read_text().split("\n")[0].split()[1]
    info = audio_info(corpus / name)
    samples = read_audio(corpus / name)
    assert info.channels == 1
    assert info.format in ("OGG", "FLAC")
    assert len(samples) == round(info.duration_s * 16000)
    assert 0.001 < np.sqrt(np.mean(samples**2)) < 0.5
    assert sum(len(piece) for _, piece in read_segments(corpus / name, 1.0)) == len(samples)


def test_three_hours_are_read_piece_by_piece(tmp_path: Path) -> None:
    path, minute = tmp_path / "long.flac", np.zeros(60 * 8000, dtype=np.float32)
    minute[::8000] = 0.5  # a click a second: something to be lost or doubled
    with sf.SoundFile(path, "w", 8000, 1) as file:
        for _ in range(180):
            file.write(minute)
    clicks, end_s = 0, 0.0
    for start_s, samples in read_segments(path, 30.0, 16000):
        assert start_s == pytest.approx(end_s, abs=1e-3)
        assert len(samples) <= 30.0 * 16000
        end_s = start_s + len(samples) / 16000
        loud = samples > 0.2
        clicks += int(loud[0]) + int((loud[1:] & ~loud[:-1]).sum())
    assert end_s == pytest.approx(3 * 3600, abs=0.01)
    assert clicks == pytest.approx(3 * 3600, abs=400)  # one in a cut may be seen twice, or not at all


def test_a_name_need_not_be_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    sf.write(os.fsencode(path), np.zeros(1600, np.float32), 16000, format="WAV")
    assert len(read_audio(path)) == 1600
    assert audio_info(path).duration_s == 0.1
    (tmp_path / os.fsdecode(b"\xe9.wav")).write_bytes(b"noise")
    with pytest.raises(AudioError, match="corrupt or not audio"):
        read_audio(tmp_path / os.fsdecode(b"\xe9.wav"))
