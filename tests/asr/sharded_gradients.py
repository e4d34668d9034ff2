"""Run by two processes of test_sharding.py: gradients of whole weights and of pieces, for every family."""

from __future__ import annotations

import sys
from typing import Any

import torch

from asr.data.examples import Batch, Example, make_batch
from asr.families import load_family
from asr.training.processes import Processes
from asr.training.sharding import Objective, whole
from lm.tokenizer import Tokenizer

CONFORMER = {"layers": 2, "width": 16, "heads": 2, "feed_forward": 32, "dropout": 0.0}
BLSTM = {"kind": "blstm", "layers": 2, "width": 8, "reductions": [2, 2], "dropout": 0.0}
PREDICTOR = {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32, "dropout": 0.0}
LSTM = {"kind": "lstm", "width": 16, "dropout": 0.0}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "CTC": ("ctc", {"encoder": CONFORMER}),
    "CTC, BLSTM": ("ctc", {"encoder": BLSTM}),
    "RNN-T": ("transducer", {"encoder": CONFORMER, "joint_width": 16, "predictor": {"dropout": 0.0}}),
    "RNN-T, LSTM": ("transducer", {"encoder": BLSTM, "joint_width": 16, "predictor": LSTM}),
    "FNT": ("factorized", {"encoder": CONFORMER, "predictor": PREDICTOR, "blank_width": 8}),
    "TAED": ("taed", {"encoder": CONFORMER, "decoder": PREDICTOR, "decoder_chunk": 4, "joint_width": 16}),
    "AED": ("aed", {"encoder": CONFORMER, "decoder": PREDICTOR}),
    "AED, LSTM": ("aed", {"encoder": BLSTM, "decoder": LSTM}),
}  # fmt: skip


def batch_of(seed: int, tokenizer: Tokenizer) -> Batch:
    """Two utterances, the first with a name in odd batches only."""
    generator = torch.Generator().manual_seed(seed)
    said = ["call <contact>maja</contact> now" if seed % 2 else "call me now", "a dog"]
    examples = [Example.from_text(str(i), text, tokenizer) for i, text in enumerate(said)]
    features = torch.randn(2, 160, 80, generator=generator)
    text = examples if seed % 2 else []
    return make_batch(
        features, torch.tensor([160, 140]), examples, tokenizer.vocab_size, 1.0, generator, text
    )


def own_piece(parameter: Any) -> torch.Tensor:
    """What this process has of a weight."""
    local: torch.Tensor = parameter.to_local()
    return local


def differences(name: str, tokenizer: Tokenizer, processes: Processes) -> float:
    """The largest between gradients of the batches of all processes together and of theirs, in pieces."""
    family, shape = SHAPES[name]
    built = []
    for _ in range(2):
        torch.manual_seed(7)
        model = load_family(family, shape, tokenizer, "here")
        model.model.eval()  # nothing is drawn
        built.append((model.model, model.loss_config({})))
    (plain, config), (cut, _) = built
    for rank in range(processes.count):
        torch.autograd.backward(plain.losses(batch_of(rank, tokenizer), config)["total"])  # type: ignore[operator]
    objective = Objective(cut, torch.device("cpu"), processes.count)
    held = sum(own_piece(p).numel() for p in cut.parameters())
    assert held < 0.6 * sum(p.numel() for p in plain.parameters())
    torch.autograd.backward(objective(batch_of(processes.rank, tokenizer), config)["total"])
    found = {n: whole(p.grad) for n, p in cut.named_parameters()}
    worst = 0.0
    for n, parameter in plain.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert found[n] is not None, n
        worst = max(worst, float((found[n] - expected).abs().max() / (1e-3 + expected.abs().max())))
    assert sum(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in plain.parameters()) > 5
    return worst


if __name__ == "__main__":
    torch.set_num_threads(1)
    processes = Processes()
    lines = ["call maja novak", "abcdefghijklmnopqrstuvwxyz"] * 20
    tokenizer = Tokenizer.train(lines, 40, ["contact"])
    found = {name: differences(name, tokenizer, processes) for name in SHAPES}
    print(found)
    torch.distributed.destroy_process_group()
    sys.exit(any(worst > 1e-4 for worst in found.values()))
