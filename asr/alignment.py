"""When the words of a known text were said, by the best CTC alignment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from asr.audio import read_audio
from asr.features import fbank
from asr.recordings import AudioPart
from decoding.ctc_alignment import first_frames
from lm.errors import DataError

if TYPE_CHECKING:
    from asr.recognizer import Recognizer


def align_labels(logp: Tensor, labels: Sequence[int]) -> list[int]:
    """The first frame of each label on the most probable CTC path that says ``labels``.

    Args:
        logp: ``(T, V + 1)`` log probabilities of one utterance, blank last.
        labels: U of them.

    Raises:
        DataError: there are too few frames to say them in.
    """
    frames = torch.tensor([len(logp)], device=logp.device)
    ((first,),) = first_frames(logp[None], frames, [[labels]])
    if first is None:
        raise DataError(
            f"{len(labels)} labels in {len(logp)} frames", "enough frames for them", "check the text"
        )
    return list(first)


def word_starts(recognizer: Recognizer, audio: AudioPart, text: str) -> list[float]:
    """Seconds at which a CTC model hears the first token of each word of ``text``, from the start of ``audio``.

    Raises:
        DataError: the model is of another family, or the recording too short for the text.
        AudioError: the recording cannot be read.
    """
    model, tokenizer = recognizer.family.model, recognizer.tokenizer
    if not hasattr(model, "logp"):
        raise DataError("a model that is not CTC", "a CTC model", "align with one of family ctc")
    samples = read_audio(audio.path, recognizer.features.sample_rate, audio.start_s, audio.end_s)
    features = fbank(torch.from_numpy(samples), recognizer.features)
    device = next(model.parameters()).device
    with torch.inference_mode():
        lengths = torch.tensor([len(features)], device=device)
        encoded, frames = cast("Any", model).encode(features[None].to(device), lengths)
        logp = cast("Any", model).logp(encoded)[0, : int(frames[0])]
    labels = tokenizer.encode(text)
    seconds = recognizer.family.stacking * recognizer.features.frame_shift_ms / 1000
    first = align_labels(logp, labels)
    return [first[start] * seconds for _, start, _ in tokenizer.words(labels)]
