"""Tokens: the numbering, the normaliser, and no character lost without a word."""

from __future__ import annotations

import pickle
import random
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.errors import BundleError, ConfigError, DataError
from lm.tagged_text import parse
from lm.tokenizer import WORD_START, Case, ModelType, Tokenizer

LINES = [
    "call <contact>john smith</contact> now",
    "please don't call <contact>mary o'neil</contact>",
    "play <song>the long and winding road</song> again",
    "a quick brown fox jumps over the lazy dog and the vexed zebra",
] * 3
CLASSES = ["song", "contact"]


def train(model_type: ModelType = "unigram", case: Case = "upper", vocab_size: int = 60) -> Tokenizer:
    return Tokenizer.train(LINES, vocab_size, CLASSES, model_type, case)


TOKENIZERS = {(m, c): train(m, c) for m in ("unigram", "bpe", "char") for c in ("upper", "lower")}
UNIGRAM = TOKENIZERS["unigram", "upper"]
SPELLABLE = st.text("abcdefghijklmnopqrstuvwxyz' ", max_size=25)
ANY = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=lambda t: f"{t.vocab_size}{t.case}")


@ANY
def test_numbering(tokenizer: Tokenizer) -> None:
    size = tokenizer.vocab_size
    assert len(tokenizer.pieces) == size == len(set(tokenizer.pieces)) <= 60
    assert tokenizer.classes == ("song", "contact")
    assert tokenizer.num_classes == 2
    assert tokenizer.class_id("contact") == 1
    assert tokenizer.starts_word.dtype == bool
    assert tokenizer.starts_word.tolist() == [p.startswith(WORD_START) for p in tokenizer.pieces]
    assert not any(p.startswith("<") for p in tokenizer.pieces)
    for token, piece in enumerate(tokenizer.pieces):
        assert tokenizer.decode([token]) == piece.replace(WORD_START, "")
    assert tokenizer.decode([size, size + 1]) == "<song> <contact>"


@ANY
def test_pieces_spell_the_text(tokenizer: Tokenizer) -> None:
    spelled = "".join(tokenizer.pieces[i] for i in tokenizer.encode("Don't call John"))
    assert spelled == tokenizer.normalise("don't call john").replace(" ", WORD_START).join([WORD_START, ""])


def test_every_model_type_folds_to_its_case() -> None:
    for (_, case), tokenizer in TOKENIZERS.items():
        assert tokenizer.case == case
        assert tokenizer.normalise("John SMITH") == ("JOHN SMITH" if case == "upper" else "john smith")
        assert tokenizer.encode("JOHN") == tokenizer.encode("john")


@ANY
def test_save_load_and_pickle_change_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.model")
    for copy in (Tokenizer.load(tmp_path / "tokenizer.model"), pickle.loads(pickle.dumps(tokenizer))):
        assert copy.pieces == tokenizer.pieces
        assert copy.classes == tokenizer.classes
        assert copy.case == tokenizer.case
        assert copy.encode("call mary") == tokenizer.encode("call mary")
        assert copy.model_bytes == tokenizer.model_bytes


def test_training_leaves_no_file_and_is_repeatable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train().model_bytes == UNIGRAM.model_bytes
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_class_may_have_the_name_of_a_sentencepiece_symbol() -> None:
    tokenizer = Tokenizer.train(LINES, 60, ["unk", "s", "pad"])
    assert tokenizer.classes == ("unk", "s", "pad")
    assert tokenizer.try_encode("7") == (None, "7")


@settings(max_examples=60, deadline=None)
@given(SPELLABLE)
def test_encode_then_decode_is_the_normal_form(text: str) -> None:
    for tokenizer in TOKENIZERS.values():
        ids = tokenizer.encode(text)
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert tokenizer.decode(ids) == tokenizer.normalise(text)
        assert tokenizer.try_encode(text) == (ids, "")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, UNIGRAM.vocab_size + 1), max_size=12))
def test_words_partition_any_tokens(ids: list[int]) -> None:
    words = UNIGRAM.words(ids)
    assert [word for word, _, _ in words] == UNIGRAM.decode(ids).split()
    end = 0
    for word, first, last in words:
        assert first >= end
        assert first < last
        assert UNIGRAM.decode(ids[first:last]) == word
        end = last
    covered = {i for _, first, last in words for i in range(first, last)}
    assert all(UNIGRAM.decode([ids[i]]) == "" for i in range(len(ids)) if i not in covered)


def test_empty_text() -> None:
    assert UNIGRAM.encode("") == UNIGRAM.encode(" ... ") == []
    assert UNIGRAM.try_encode("") == ([], "")
    assert UNIGRAM.encode_batch([]) == []
    assert UNIGRAM.words([]) == []
    assert UNIGRAM.decode([]) == ""


@settings(max_examples=40, deadline=None)
@given(st.lists(SPELLABLE, max_size=6))
def test_batch_equals_one_by_one(texts: list[str]) -> None:
    assert UNIGRAM.encode_batch(texts) == [UNIGRAM.encode(text) for text in texts]


def test_what_has_no_token_is_named() -> None:
    assert UNIGRAM.try_encode("call 7 ж7 now") == (None, "7Ж")
    with pytest.raises(DataError, match=r"'call r2d2'.*'2'"):
        UNIGRAM.encode("call r2d2")
    with pytest.raises(DataError, match=r"'now 8'.*'8'"):
        UNIGRAM.encode_batch(["call", "", "now 8", "9"])
    flat, lengths = UNIGRAM.encode_flat(["8", "", "a"])
    assert (flat[: lengths[0]] == -1).any()
    assert lengths[1] == 0
    assert (flat[lengths[0] :] >= 0).all()


def test_tagged_text_keeps_spans_apart() -> None:
    for tokenizer in TOKENIZERS.values():
        tagged = parse("<song>winding road</song> call <contact>Mary O'Neil</contact>")
        ids, spans = tokenizer.encode_tagged(tagged)
        assert [index for index, _, _ in spans] == [0, 1]
        for (_, start, end), text in zip(spans, ("winding road", "mary o'neil"), strict=True):
            assert tokenizer.decode(ids[start:end]) == tokenizer.normalise(text)
            assert tokenizer.starts_word[ids[start]]
            assert end == len(ids) or tokenizer.starts_word[ids[end]]
        pattern = tokenizer.render_pattern(ids, spans)
        size = tokenizer.vocab_size
        assert pattern == [size, *ids[spans[0][2] : spans[1][1]], size + 1]
        assert tokenizer.decode(pattern) == f"<song> {tokenizer.normalise('call')} <contact>"
        assert tokenizer.render_pattern(ids, []) == ids
        assert ids == tokenizer.encode(tagged.surface)


def test_tagged_text_of_unknown_class_or_without_words_is_refused() -> None:
    with pytest.raises(DataError, match=r"'city'.*song, contact"):
        UNIGRAM.encode_tagged(parse("to <city>rome</city>"))
    with pytest.raises(DataError, match="only punctuation"):
        UNIGRAM.encode_tagged(parse("call <contact>...</contact>"))


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("Søren’s  “AC/DC” — Émile", "SOREN'S AC DC EMILE"),
        ("(St. John), U.S.A. wait…what?", "ST JOHN USA WAIT WHAT"),
        ("''quoted'' rock ' n ' roll 'tis", "QUOTED ROCK N ROLL 'TIS"),
        ("mother-in-law's snake_case", "MOTHER IN LAW'S SNAKE CASE"),
        ("Łukasz Straße ﬁne Ｗｉｄｅ", "LUKASZ STRASSE FINE WIDE"),
        ("AT&T 3½ £5 100%", "AT&T 31 2 £5 100%"),
        ("smith,john;doe", "SMITH JOHN DOE"),
        ("zero\u200bwidth soft\u00adhyphen no\u00a0break\ttab", "ZEROWIDTH SOFTHYPHEN NO BREAK TAB"),
        ("<contact>x</contact>", "CONTACTX CONTACT"),
        ("हिन्दी Київ", "हिन्दी КИІВ"),
    ],
)
def test_spoken_form(text: str, spoken: str) -> None:
    assert UNIGRAM.normalise(text) == spoken


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_normalising_twice_is_normalising_once(text: str) -> None:
    for tokenizer in (UNIGRAM, TOKENIZERS["char", "lower"]):
        once = tokenizer.normalise(text)
        assert tokenizer.normalise(once) == once
        assert once == " ".join(once.split())
        ids, bad = tokenizer.try_encode(text)
        assert (ids is None) == bool(bad)
        assert set(bad) <= set(once)


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "char"])
def test_training_that_cannot_work_is_refused(model_type: ModelType) -> None:
    letters = {c for line in LINES for c in parse(line).surface}
    least = len(letters | {" "})
    assert Tokenizer.train(LINES, least, CLASSES, model_type).vocab_size <= least
    with pytest.raises(ConfigError, match=rf"at least {least}"):
        Tokenizer.train(LINES, least - 1, CLASSES, model_type)
    with pytest.raises(DataError, match="no words"):
        Tokenizer.train(["...", ""], 30, CLASSES, model_type)
    with pytest.raises(DataError, match="never closed"):
        Tokenizer.train(["call <contact>john"], 30, CLASSES, model_type)
    with pytest.raises(ConfigError, match="'Bad'"):
        Tokenizer.train(LINES, 60, ["Bad"], model_type)
    with pytest.raises(ConfigError, match="distinct"):
        Tokenizer.train(LINES, 60, ["a", "a"], model_type)


def test_a_very_long_line_is_not_skipped() -> None:
    tokenizer = Tokenizer.train(["ab " * 3000 + "q"], 10, model_type="char")
    assert tokenizer.encode("q")


def test_files_that_are_no_tokenizer_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    with pytest.raises(BundleError, match="No such file"):
        Tokenizer.load(path)
    for content in (b"", b"junk", UNIGRAM.model_bytes[:100]):
        path.write_bytes(content)
        with pytest.raises(BundleError, match=r"tokenizer\.model"):
            Tokenizer.load(path)


def test_foreign_models_that_would_mislead_are_refused() -> None:
    import io

    import sentencepiece

    def model(lines: list[str], **options: object) -> bytes:
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=out, minloglevel=3, hard_vocab_limit=False, **options
        )
        return out.getvalue()

    with pytest.raises(BundleError, match="mixes cases"):
        Tokenizer(model(["John called", "Mary called"], vocab_size=30))
    with pytest.raises(BundleError, match="byte fallback"):
        Tokenizer(model(["john called"], vocab_size=300, byte_fallback=True))
    with pytest.raises(BundleError, match="across words"):
        Tokenizer(
            model(["the cat", "the cat"] * 9, vocab_size=30, split_by_whitespace=False, model_type="bpe")
        )
    plain = Tokenizer(model(["john called"] * 3, vocab_size=30))
    assert plain.decode(plain.encode("john")) == "john"
    assert not {"<s>", "</s>", "<unk>"} & {*plain.pieces, *plain.classes}


def test_a_hundred_thousand_texts_take_about_a_second() -> None:
    draw = random.Random(0)
    words = [word for line in LINES for word in parse(line).surface.split()]
    texts = [" ".join(draw.choices(words, k=2)) for _ in range(100_000)]
    began = time.perf_counter()
    encoded = UNIGRAM.encode_batch(texts)
    assert time.perf_counter() - began < 4.0
    assert encoded[99_999] == UNIGRAM.encode(texts[-1])
    assert np.all(UNIGRAM.encode_flat(texts)[0] >= 0)


def test_normal_forms_of_single_characters_are_stable_and_hold_no_markup() -> None:
    for code in range(0x3100):
        once = UNIGRAM.normalise(f"a{chr(code)}b")
        assert UNIGRAM.normalise(once) == once
        assert not set("<>\u2581") & set(once)


def test_a_class_tag_is_a_word_of_its_own() -> None:
    inner = UNIGRAM.starts_word.tolist().index(False)
    tag = UNIGRAM.vocab_size
    assert UNIGRAM.words([inner, tag, inner, inner]) == [
        (UNIGRAM.pieces[inner], 0, 1),
        ("<song>", 1, 2),
        (UNIGRAM.pieces[inner] * 2, 2, 4),
    ]
