"""Prefix trees of token sequences, without a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lm.classes import EncodedCatalog, EncodedClass, EncodingReport, EntityCatalog
from lm.prefix_tree import PrefixTree

Entries = Sequence[tuple[Sequence[int], float]]


def tree_of(lists: Mapping[int, Entries], vocab_size: int, num_classes: int) -> PrefixTree:
    """The tree of (tokens, weight) by class index."""
    classes = []
    for index, entries in sorted(lists.items()):
        lengths = [len(tokens) for tokens, _ in entries]
        classes.append(
            EncodedClass(
                name=f"class{index}",
                index=index,
                tokens=np.array([t for tokens, _ in entries for t in tokens], dtype=np.int64),
                offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
                entry=np.arange(len(entries), dtype=np.int64),
                weight=np.array([weight for _, weight in entries]),
            )
        )
    nothing = EntityCatalog.empty()
    report = EncodingReport(nothing, None, {})  # type: ignore[arg-type]
    return PrefixTree.build(EncodedCatalog(nothing, tuple(classes), report), vocab_size, num_classes)
