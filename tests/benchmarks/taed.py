"""What a TAED costs beside a plain transducer of the same encoder: bytes kept for backward, and seconds a step.

    python tests/benchmarks/taed.py [--utterances 8] [--seconds 12] [--chunk 16]

Prints a row for the transducer and for TAED without and with chunks, training and search. One thread.
"""

from __future__ import annotations

import argparse
import time
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from asr.data.examples import Example, make_batch
from asr.families import load_family
from decoding.frame_sync import BeamConfig, BeamSearch
from lm.tokenizer import Tokenizer

ENCODER = {"layers": 6, "width": 144, "feed_forward": 576}
DECODER = {"layers": 2, "width": 144, "feed_forward": 576}
VOCAB, LABELS_S = 200, 5


def systems(chunk: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Family and shape by the name of their row."""
    chunked = {"encoder": ENCODER | {"chunk": chunk}, "decoder": DECODER}
    return {
        "RNN-T": ("transducer", {"encoder": ENCODER}),
        "TAED, whole": ("taed", {"encoder": ENCODER, "decoder": DECODER}),
        f"TAED, chunk {chunk}": ("taed", chunked),
    }


def kept_bytes(family: Any, batch: Any) -> int:
    """Bytes of the tensors that a training step keeps for its backward pass, each storage once."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = family.model.losses(batch, family.loss_config({}))["total"]
    weights = {p.untyped_storage().data_ptr() for p in family.model.parameters()}
    result = sum(size for place, size in seen.items() if place not in weights)
    torch.autograd.backward(total)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--chunk", type=int, default=16)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    frames = int(100 * chosen.seconds)
    features = torch.randn(chosen.utterances, frames, 80, generator=generator)
    lengths = torch.full((chosen.utterances,), frames)
    labels = torch.randint(VOCAB, (chosen.utterances, int(LABELS_S * chosen.seconds)), generator=generator)
    examples = [Example(str(i), tuple(row), ()) for i, row in enumerate(labels.tolist())]
    batch = make_batch(features, lengths, examples, VOCAB, 0.0, generator)
    sizes = cast("Tokenizer", SimpleNamespace(vocab_size=VOCAB, num_classes=0))
    print(
        f"{chosen.utterances} utterances of {chosen.seconds:g} s, {labels.shape[1]} labels each, one thread"
    )
    print(f"{'':16}{'parameters':>12}{'kept MB':>10}{'step s':>9}{'beam 4 s':>10}")
    for name, (kind, shape) in systems(chosen.chunk).items():
        torch.manual_seed(0)
        family = load_family(kind, shape, sizes, "benchmark")
        count = sum(p.numel() for p in family.model.parameters())
        family.model.train()
        kept = kept_bytes(family, batch)
        took = []
        for _ in range(3):
            began = time.perf_counter()
            torch.autograd.backward(family.model.losses(batch, family.loss_config({}))["total"])
            took.append(time.perf_counter() - began)
        family.model.eval()
        cast("Any", family.model).joint.output.weight.data.mul_(4)  # else nothing is said
        with torch.no_grad():
            began = time.perf_counter()
            BeamSearch(family.emitter(features, lengths, 1.0, 32), BeamConfig(beam=4)).run()
            search = time.perf_counter() - began
        print(f"{name:16}{count / 1e6:>10.2f} M{kept / 1e6:>10.0f}{min(took):>9.2f}{search:>10.2f}")


if __name__ == "__main__":
    main()
