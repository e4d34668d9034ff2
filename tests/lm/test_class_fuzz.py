"""Lists of any text: either a clear error, or a tree of exactly what the list says."""

from __future__ import annotations

import math
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.classes import EntityCatalog, encode_catalog
from lm.errors import EntityListError, VocativeError
from lm.patterns import REFERENCE, parse_pattern
from lm.prefix_tree import PrefixTree
from lm.tokenizer import Tokenizer

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
TOKENIZER = Tokenizer.train([f"{ALPHABET} john's smith ab aba"] * 5, 45, ["contact", "thing"], "bpe")
V, C = TOKENIZER.vocab_size, TOKENIZER.num_classes


def _is_pattern(text: str) -> bool:
    try:
        parse_pattern(" ".join(text.split()))
    except EntityListError:
        return False
    return True


def _is_entry(given: Any) -> bool:
    try:
        EntityCatalog.from_mapping({"thing": [given]})
    except EntityListError:
        return False
    return set(REFERENCE.findall(str(given))) <= {"contact"}


ANY = st.one_of(
    st.text(max_size=12),
    st.text("ab'<>contact ß\u0301\u200bé\u4e2d7", max_size=12),
    st.sampled_from(
        ["<contact>", "<contact>'s", "x<contact>y", "<contact> <contact>", "a" * 3000, "\u200b", "<nobody"]
    ),
)
PATTERN = st.one_of(
    st.sampled_from(
        ["a (b | ab)? a", "<contact>'s ab", "(ab <contact>){1,2}", r"\d{2} ab?", "a{1,3} | <contact>"]
    ),
    st.text("ab()|?{}1,2 \\d<contact>", min_size=1, max_size=10).filter(_is_pattern),
)
ENTRY = st.one_of(
    ANY,
    st.fixed_dictionaries(
        {"text": ANY},
        optional={"spoken": st.lists(ANY, max_size=3), "weight": st.floats(0.01, 100.0), "id": ANY},
    ),
    st.fixed_dictionaries({"pattern": PATTERN}),
    st.fixed_dictionaries({"number": st.sampled_from(["zip", "time", "ordinal"])}),
)


def follow(tree: PrefixTree, index: int, tokens: list[int]) -> tuple[int, float]:
    node, logp = tree.root[index], 0.0
    for token in tokens:
        node, arc = tree.lookup(node, torch.tensor(token))
        logp += float(arc)
    return int(node), logp


@settings(max_examples=80, deadline=None)
@given(st.lists(ENTRY, max_size=6), st.lists(ANY, min_size=1, max_size=4), st.booleans())
def test_any_list_is_compiled_or_refused(entries: list[Any], people: list[str], mend: bool) -> None:
    if mend:  # else what is wrong with most lists would hide the rest
        entries = ["john", *(entry for entry in entries if _is_entry(entry))]
        people = ["smith", *(name for name in people if name.strip() and not REFERENCE.search(name))]
    problem = None
    try:
        catalog = EntityCatalog.from_mapping({"thing": entries, "contact": people})
        encoded = encode_catalog(catalog, TOKENIZER)
    except EntityListError as error:
        problem = str(error)
    if problem is not None:
        assert not mend, problem
        assert "\n" not in problem
        return
    tree = PrefixTree.build(encoded, V, C)
    out = tree.end_logp.double().exp().index_add(0, tree.arc_key // V, tree.arc_logp.double().exp())
    assert torch.allclose(out, torch.ones_like(out), atol=1e-4)
    assert not torch.isfinite(tree.end_logp[tree.root[tree.root >= 0]]).any()
    assert sum(encoded.report.counts().values()) == len(catalog)
    for row in encoded.report.rows():
        if row.status == "ok":
            for pieces in row.pieces:
                tokens = [TOKENIZER.pieces.index(piece) for piece in pieces]
                index = TOKENIZER.class_id(row.class_name)
                node, logp = follow(tree, index, tokens)
                assert node >= 0
                assert math.isfinite(logp + float(tree.end_logp[node]))
                said = TOKENIZER.decode(tokens)
                reading = encoded.reading(row.class_name, said, tree.entries_at(node))
                assert reading is not None, said
    assert catalog.fingerprint() == catalog.canonical().fingerprint()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab ", min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=30))
def test_duplicates_and_prefixes_share_their_weight(texts: list[str]) -> None:
    encoded = encode_catalog(EntityCatalog.from_mapping({"contact": texts}), TOKENIZER)
    tree = PrefixTree.build(encoded, V, C)
    count: dict[tuple[int, ...], int] = defaultdict(int)
    for text in texts:
        count[tuple(TOKENIZER.encode(text))] += 1
    for tokens, times in count.items():
        node, logp = follow(tree, 0, list(tokens))
        assert logp + float(tree.end_logp[node]) == pytest.approx(math.log(times / len(texts)), abs=1e-4)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["txt", "csv", "jsonl", "yaml"]),
    st.text(max_size=60) | st.text('thing:\n- {}[]<>|,"', max_size=60),
)
def test_any_file_is_read_or_refused(kind: str, content: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"thing.{kind}"
        path.write_text(content, encoding="utf-8", errors="replace", newline="")
        problem, count = None, 0
        try:
            count = len(EntityCatalog.load(path))
        except VocativeError as error:
            problem = str(error)
        assert count > 0 if problem is None else str(path) in problem


def test_a_very_long_entry() -> None:
    name = " ".join(["ab", "smith"] * 900)
    encoded = encode_catalog(
        EntityCatalog.from_mapping(
            {"contact": [name, "ab"], "thing": [f"{name} <contact>", f"<contact> {name}"]}
        ),
        TOKENIZER,
    )
    tree = PrefixTree.build(encoded, V, C)
    tokens = TOKENIZER.encode(name)
    assert len(tokens) > 1800
    node, logp = follow(tree, 0, tokens)
    assert logp + float(tree.end_logp[node]) == pytest.approx(math.log(0.5), abs=1e-4)
    node, logp = follow(tree, 1, TOKENIZER.encode(f"{name} ab"))
    assert tree.share_logp(node, TOKENIZER.encode(f"{name} ab")) == pytest.approx(math.log(0.25), abs=1e-3)


def test_entries_that_begin_with_each_other_in_a_long_row() -> None:
    entries = [" ".join(["ab"] * length) + " <contact>" for length in range(1, 250)]
    encoded = encode_catalog(
        EntityCatalog.from_mapping({"contact": ["john", "ab"], "thing": entries}), TOKENIZER
    )
    tree = PrefixTree.build(encoded, V, C)
    node, logp = follow(tree, 1, TOKENIZER.encode(" ".join(["ab"] * 200) + " john"))
    assert logp + float(tree.end_logp[node]) == pytest.approx(math.log(0.5 / 249), abs=1e-3)


def test_a_hundred_thousand_entries_the_whole_way() -> None:
    """In quiet 0.7 s and about 80 MB; the bars here leave room for a busy machine."""
    draw = random.Random(0)
    words = ["".join(draw.choices(ALPHABET, k=draw.randint(3, 7))) for _ in range(9000)]
    found: set[str] = set()
    while len(found) < 100_000:
        found.add(f"{draw.choice(words)} {draw.choice(words)}")
    names = draw.sample(sorted(found), len(found))
    began = time.perf_counter()
    encoded = encode_catalog(EntityCatalog.from_mapping({"contact": names}), TOKENIZER)
    tree = PrefixTree.build(encoded, V, C)
    assert time.perf_counter() - began < 6.0
    bytes_ = sum(v.nbytes for v in vars(tree).values() if hasattr(v, "nbytes"))
    assert bytes_ < 60e6
    for name in names[:20]:
        node, logp = follow(tree, 0, TOKENIZER.encode(name))
        assert logp + float(tree.end_logp[node]) == pytest.approx(-math.log(100_000), abs=1e-3)
        assert encoded.reading("contact", name, tree.entries_at(node)) is not None
