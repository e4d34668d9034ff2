from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.writers import FORMATS, from_dict, to_dict, write, write_joined, write_whole
from decoding.result import EntitySpan, Hypothesis, Transcript, Word
from lm.errors import ConfigError, DataError

WORDS = (Word("call", 0.04, 0.4, 0.9), Word("ann", 0.4, 0.72, 0.83125), Word("<b>&", 3.0, 3.2, 1.0))
SPAN = EntitySpan("contact", "ann", "Ann Lee", "c1", 1, 2, 0.4, 0.72, 0.8)
BEST = Hypothesis("call ann <b>&", -1.5, {"model": -2.0, "lm": 0.5}, WORDS, (SPAN,))
TRANSCRIPT = Transcript("day 1/call", "call ann <b>&", 4.0, WORDS, (SPAN,), (BEST, replace(BEST, score=-3.0)))

times = st.floats(-1, 8000, allow_nan=False)
word_lists = st.lists(
    st.builds(Word, st.text("abcß'", min_size=1, max_size=12), times, times, st.floats()),
    min_size=1,
    max_size=60,
)


def transcript(words: list[Word]) -> Transcript:
    return Transcript("u", " ".join(w.text for w in words), 9000.0, tuple(words))


def test_txt_and_ctm_and_subtitles_by_hand(tmp_path: Path) -> None:
    content = {name: write(TRANSCRIPT, name, tmp_path).read_text() for name in ("txt", "ctm", "srt", "vtt")}
    assert content["txt"] == "call ann <b>&\n"
    assert content["ctm"] == (
        "day_1/call 1 0.040 0.360 call 0.900\n"
        "day_1/call 1 0.400 0.320 ann 0.831\n"
        "day_1/call 1 3.000 0.200 <b>& 1.000\n"
    )
    assert content["srt"] == (
        "1\n00:00:00,040 --> 00:00:00,720\ncall ann\n\n2\n00:00:03,000 --> 00:00:03,200\n<b>&\n"
    )
    assert content["vtt"] == (
        "WEBVTT\n\n00:00:00.040 --> 00:00:00.720\ncall ann\n\n00:00:03.000 --> 00:00:03.200\n&lt;b&gt;&amp;\n"
    )


def test_json_and_jsonl_hold_everything(tmp_path: Path) -> None:
    whole = json.loads(write(TRANSCRIPT, "json", tmp_path).read_text())
    assert whole["written"] == "call Ann Lee <b>&"
    assert whole["hypotheses"][0]["scores"] == {"model": -2.0, "lm": 0.5}
    line = write(TRANSCRIPT, "jsonl", tmp_path).read_text()
    assert line.count("\n") == 1
    assert json.loads(line) == whole
    assert from_dict(whole) == TRANSCRIPT


def test_figures_that_are_not_finite_survive_as_null() -> None:
    odd = replace(TRANSCRIPT, words=(Word("a", 0.0, float("inf"), float("nan")),), text="a", entities=())
    values = json.loads(json.dumps(to_dict(odd), allow_nan=False))
    assert values["words"][0]["confidence"] is None
    assert str(from_dict(values).words[0].confidence) == "nan"


@given(word_lists)
def test_ctm_times_never_run_backwards(words: list[Word]) -> None:
    lines = FORMATS["ctm"].render(transcript(words)).splitlines()
    assert [line.split()[4] for line in lines] == [w.text for w in words]
    now = 0.0
    for line in lines:
        name, channel, start, length, _, confidence = line.split()
        assert (name, channel) == ("u", "1")
        assert float(start) >= now - 1e-9
        assert float(length) >= 0
        assert 0 <= float(confidence) <= 1
        now = float(start) + float(length)


@given(word_lists, st.sampled_from(["srt", "vtt"]))
def test_subtitles_hold_all_words_in_cues_that_follow_one_another(words: list[Word], kind: str) -> None:
    content = FORMATS[kind].render(transcript(words))
    blocks = content.split("\n\n") if kind == "srt" else content.split("\n\n")[1:]
    now, said = 0, []
    for number, block in enumerate(blocks, start=1):
        lines = block.strip("\n").split("\n")
        if kind == "srt":
            assert lines.pop(0) == str(number)
        ends = re.fullmatch(
            r"(\d\d+):([0-5]\d):([0-5]\d)[,.](\d{3}) --> (\d\d+):([0-5]\d):([0-5]\d)[,.](\d{3})", lines[0]
        )
        assert ends is not None
        h1, m1, s1, x1, h2, m2, s2, x2 = map(int, ends.groups())
        start, end = ((h1 * 60 + m1) * 60 + s1) * 1000 + x1, ((h2 * 60 + m2) * 60 + s2) * 1000 + x2
        assert now <= start <= end
        now = end
        assert 1 <= len(lines) - 1 <= 2
        assert all(len(line) <= 42 for line in lines[1:])
        said += " ".join(lines[1:]).split()
    assert said == [w.text for w in words]


def test_stm_and_textgrid_by_hand() -> None:
    assert FORMATS["stm"].render(TRANSCRIPT) == "day_1/call 1 unknown 0.000 4.000 call ann <b>&\n"
    lines = FORMATS["textgrid"].render(TRANSCRIPT).splitlines()
    assert lines[:7] == [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        "xmax = 4.000",
        "tiers? <exists>",
        "size = 2",
    ]
    assert tiers_of("\n".join(lines)) == {
        "words": [
            (0.0, 0.04, ""),
            (0.04, 0.4, "call"),
            (0.4, 0.72, "ann"),
            (0.72, 3.0, ""),
            (3.0, 3.2, "<b>&"),
            (3.2, 4.0, ""),
        ],
        "entities": [(0.0, 0.4, ""), (0.4, 0.72, "Ann Lee"), (0.72, 4.0, "")],
    }
    with pytest.raises(DataError, match="'u' has no times"):
        FORMATS["textgrid"].render(Transcript("u", "hello", 2.5))
    with pytest.raises(DataError, match="'u' has no times"):
        FORMATS["stm"].render(Transcript("u", "hello", float("nan")))


def tiers_of(content: str) -> dict[str, list[tuple[float, float, str]]]:
    """The intervals of each tier, and whether there are as many as the file says."""
    tiers = {}
    for part in content.split("    item [")[1:]:
        name = re.findall(r'name = "(.*)"', part)[0]
        found = re.findall(r'xmin = (.*)\n +xmax = (.*)\n +text = "(.*)"', part)
        assert int(re.findall(r"intervals: size = (\d+)", part)[0]) == len(found)
        tiers[name] = [(float(start), float(end), text.replace('""', '"')) for start, end, text in found]
    return tiers


@given(word_lists)
def test_intervals_of_a_textgrid_leave_no_gap_and_hold_all_words(words: list[Word]) -> None:
    quoted = [replace(word, text=f'"{word.text}') for word in words]
    intervals = tiers_of(FORMATS["textgrid"].render(transcript(quoted)))["words"]
    assert intervals[0][0] == 0
    assert intervals[-1][1] == 9000
    assert all(start < end for start, end, _ in intervals)
    assert all(one[1] == other[0] for one, other in pairwise(intervals))
    assert " ".join(text for _, _, text in intervals).split() == [word.text for word in quoted]


def test_words_that_overlap_keep_their_starts() -> None:
    words = [Word("a", -0.2, 1.0, 1.0), Word("b", 0.5, 1.2, 1.0)]
    assert FORMATS["ctm"].render(transcript(words)) == "u 1 0.000 0.500 a 1.000\nu 1 0.500 0.700 b 1.000\n"


def test_a_good_transcript_keeps_its_times() -> None:
    spaced = [Word(f"w{n}", 10.0 * n, 10.0 * n + 0.5, 0.5) for n in range(400)]
    content = FORMATS["srt"].render(transcript(spaced))
    assert content.count("-->") == 400
    assert "01:06:30,000 --> 01:06:30,500\nw399" in content


def test_without_word_times_subtitles_are_one_cue_and_ctm_is_refused() -> None:
    bare = Transcript("u", "hello there", 2.5)
    assert FORMATS["srt"].render(bare) == "1\n00:00:00,000 --> 00:00:02,500\nhello there\n"
    with pytest.raises(DataError, match="'u' has no times"):
        FORMATS["ctm"].render(bare)
    with pytest.raises(DataError, match="'u' has no times"):
        FORMATS["vtt"].render(replace(bare, duration_s=float("nan")))


def test_silence_is_a_valid_file_of_every_format() -> None:
    silence = Transcript("u", "", 1.0)
    content = {name: kind.render(silence) for name, kind in FORMATS.items()}
    assert (content["txt"], content["ctm"], content["srt"], content["vtt"]) == ("\n", "", "", "WEBVTT\n")


def test_a_typo_in_the_format_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"format 'josn'.*did you mean 'json'"):
        write(TRANSCRIPT, "josn", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_files_lie_where_the_id_says_and_replace_older_ones(tmp_path: Path) -> None:
    path = write(TRANSCRIPT, "txt", tmp_path)
    assert path == tmp_path / "day 1" / "call.txt"
    write(replace(TRANSCRIPT, text="new"), "txt", tmp_path)
    assert path.read_text() == "new\n"
    assert [p.name for p in path.parent.iterdir()] == ["call.txt"], "no temporary file is left"


@pytest.mark.parametrize("name", ["", "..", "../up", "/root", "a//b", "a/../../b", "."])
def test_an_id_never_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    with pytest.raises(OSError, match="names no file inside the folder"):
        write(replace(TRANSCRIPT, id=name), "txt", inside)
    assert not inside.exists()


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \udc80")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_long_names_are_limited_only_by_the_file_system(tmp_path: Path) -> None:
    name = "x" * 251
    assert write(replace(TRANSCRIPT, id=name), "txt", tmp_path).is_file()


def test_many_in_one_file(tmp_path: Path) -> None:
    other = replace(TRANSCRIPT, id="other")
    path = write_joined([TRANSCRIPT, other], "jsonl", tmp_path / "all.jsonl")
    assert [from_dict(json.loads(line)) for line in path.read_text().splitlines()] == [TRANSCRIPT, other]
    with pytest.raises(ConfigError, match="format 'srt' in one file"):
        write_joined([TRANSCRIPT], "srt", tmp_path / "all.srt")
