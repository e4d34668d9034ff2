"""When the words of a known text were said: the best CTC alignment (Graves et al. 2006, "Connectionist temporal
classification", ICML).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr.audio import read_audio
from asr.features import fbank
from asr.recordings import AudioPart
from lm.errors import DataError

if TYPE_CHECKING:
    from asr.recognizer import Recognizer


def align_labels(logp: Tensor, labels: Sequence[int], blank: int) -> list[int]:
    """The first frame of each label on the most probable CTC path that says ``labels``.

    Args:
        logp: ``(T, V + 1)`` log probabilities of one utterance.
        labels: U of them.
        blank: class of the blank.

    Raises:
        DataError: there are too few frames to say them in.
    """
    scores: NDArray[np.float64] = logp.double().cpu().numpy()
    states = np.full(2 * len(labels) + 1, blank)
    states[1::2] = labels
    frames, count = len(scores), len(states)
    # A label may follow another one directly unless it is the same.
    skips = np.zeros(count, dtype=bool)
    skips[3::2] = states[3::2] != states[1:-2:2]
    best = np.full(count, -np.inf)
    best[:2] = scores[0, states[:2]]
    steps = np.zeros((frames, count), dtype=np.int64)
    for t in range(1, frames):
        one, two = np.full(count, -np.inf), np.full(count, -np.inf)
        one[1:], two[2:] = best[:-1], best[:-2]
        choices = np.stack((best, one, np.where(skips, two, -np.inf)))
        steps[t] = choices.argmax(0)
        best = choices.max(0) + scores[t, states]
    at = count - 1 if count < 2 or best[-1] >= best[-2] else count - 2
    if not np.isfinite(best[at]):
        raise DataError(
            f"{len(labels)} labels in {frames} frames", "enough frames for them", "check the text"
        )
    first = [0] * len(labels)
    for t in range(frames - 1, -1, -1):
        if at % 2:
            first[at // 2] = t
        at -= steps[t, at]
    return first


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
    first = align_labels(logp, labels, tokenizer.vocab_size)
    return [first[start] * seconds for _, start, _ in tokenizer.words(labels)]
