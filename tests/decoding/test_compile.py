"""Compiling ahead is what the first search would compile: it then finds everything done."""

from __future__ import annotations

import torch
from toys import BigramLM, ToyEmitter
from trees import tree_of

from decoding import step_kernel
from decoding.class_status import ClassGrammar
from decoding.compile import compile_all, is_compiled
from decoding.frame_sync import BeamConfig, BeamSearch


def test_what_is_compiled_ahead_is_what_searches_with_and_without_lists_call() -> None:
    compile_all()
    assert is_compiled()
    before = len(step_kernel.step.signatures)
    emitter = ToyEmitter([5, 3], BigramLM(4, 2, seed=1), seed=1)
    grammar = ClassGrammar(
        emitter.contexts, torch.tensor([True] * 4), [tree_of({0: [([0, 2], 1.0)]}, 4, 2)] * 2
    )
    BeamSearch(emitter, BeamConfig(), grammar).run()
    BeamSearch(emitter, BeamConfig()).run()
    assert len(step_kernel.step.signatures) == before
