"""Hybrid transducer-attention encoder-decoder, TAED (Tang et al. 2023, arXiv 2305.03101).

    s_{t,u} = Dec(y_<u; h_1..h_L(t)),   L(t) = min(C ⌈(t + 1) / C⌉, T)
    z_{t,u} = W_o tanh(W_e h_t + W_s s_{t,u}) + b        over V labels and blank

A transducer whose predictor hears: the decoder of an AED. All frames of a chunk of C share its states, so an
utterance takes ⌈T / C⌉ passes through the decoder; without chunks one, and the decoder is that of a plain AED.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asr.data.examples import Batch
from asr.decoders.transformer import TransformerDecoder
from asr.encoders.build import build_encoder
from asr.encoders.masks import valid_frames
from asr.families.taed.config import TAEDConfig, TAEDLossConfig
from asr.families.transducer.joint import Joint
from asr.features import FeatureNormaliser
from asr.losses.attention import attention_loss
from asr.losses.ctc import ctc_loss
from asr.losses.rnnt import transducer_loss_from_logp


class TAED(nn.Module):
    """Encoder, decoder and joint network, with heads for CTC and for the decoder alone in training."""

    def __init__(self, config: TAEDConfig, num_tokens: int) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = num_tokens
        self.normaliser = FeatureNormaliser(config.encoder.features)
        self.encoder = build_encoder(config.encoder)
        self.decoder = TransformerDecoder(config.decoder, num_tokens, self.encoder.width)
        self.project = nn.Linear(config.decoder.width, config.joint_width, bias=False)
        self.joint = Joint(self.encoder.width, config.joint_width, num_tokens)
        self.output = nn.Linear(config.decoder.width, num_tokens + 1)
        self.ctc = nn.Linear(self.encoder.width, num_tokens + 1)
        self._growing = False

    def encode(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder frames ``(B, T, D)`` and their number ``(B,)`` from features ``(B, S, F)``."""
        encoded: tuple[Tensor, Tensor] = self.encoder(self.normaliser(features), lengths)
        return encoded

    def pretraining(self, growing: bool) -> None:
        """Whether layers are still being added; labels are not smoothed until all are there."""
        self._growing = growing

    def losses(self, batch: Batch, config: TAEDLossConfig) -> dict[str, Tensor]:
        """The parts of the objective and their sum ``total``, in nats per label.

        ``transducer``, ``ctc``, and ``attention``, the decoder alone hearing everything, in which the end counts
        as a label.
        """
        encoded, frames = self.encode(batch.features, batch.feature_lengths)
        labels = batch.label_lengths.sum().clamp(min=1)
        whole, lattice = self.scores(encoded, frames, batch, bool(config.attention_weight))
        loss = transducer_loss_from_logp(*lattice, frames, batch.label_lengths, config.backend)
        parts = {"transducer": loss.sum() / labels}
        total = parts["transducer"]
        if whole is not None:
            smoothing = 0.0 if self._growing else config.label_smoothing
            loss = attention_loss(self.output(whole), batch.labels, batch.label_lengths, smoothing)
            parts["attention"] = loss.sum() / (batch.label_lengths + 1).sum()
            total = total + config.attention_weight * parts["attention"]
        if config.ctc_weight:
            logp = self.ctc(encoded).float().log_softmax(-1)
            ctc, _ = ctc_loss(logp, batch.labels, frames, batch.label_lengths, blank=self.num_tokens)
            parts["ctc"] = ctc.sum() / labels
            total = total + config.ctc_weight * parts["ctc"]
        return parts | {"total": total}

    def scores(
        self, encoded: Tensor, frames: Tensor, batch: Batch, whole: bool
    ) -> tuple[Tensor | None, tuple[Tensor, Tensor]]:
        """Decoder states ``(B, U + 1, W)`` hearing everything, if wanted, and the lattice's log probabilities.

        These are of blank ``(B, T, U + 1)`` and of the next label ``(B, T, U)``; see ``Joint.lattice_logp``.
        """
        size = encoded.shape[1]
        memory = self.decoder.remember(encoded)
        heard, states = self.joint.frame(encoded), None
        if whole or not self.config.chunk:
            states = self.decoder(batch.labels, memory, valid_frames(frames, size))
        if not self.config.chunk:
            assert states is not None
            lattice = self.joint.lattice_logp(
                heard, self.project(states), batch.labels, frames, batch.label_lengths
            )
            return states if whole else None, lattice
        owner, chunk = chunks_of(frames, self.config.chunk)
        limit = torch.minimum((chunk + 1) * self.config.chunk, frames[owner])
        chunked = self.decoder(batch.labels[owner], memory.select(owner), valid_frames(limit, size))
        # Each chunk is an utterance of its own to the joint network.
        place = chunk[:, None] * self.config.chunk + torch.arange(self.config.chunk, device=frames.device)
        lattice = self.joint.lattice_logp(
            heard[owner[:, None], place.clamp_max(size - 1)],
            self.project(chunked),
            batch.labels[owner],
            limit - chunk * self.config.chunk,
            batch.label_lengths[owner],
        )
        real = place < limit[:, None]
        rows = owner[:, None].expand_as(place)[real], place[real]
        blank, label = (part.new_zeros(len(frames), size, part.shape[2]) for part in lattice)
        blank, label = blank.index_put(rows, lattice[0][real]), label.index_put(rows, lattice[1][real])
        return states, (blank, label)


def chunks_of(frames: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Utterance and number of every chunk ``(N,)`` that has frames, of utterances of ``frames`` ``(B,)``."""
    count = (frames + size - 1) // size
    owner = torch.repeat_interleave(torch.arange(len(frames), device=frames.device), count)
    return owner, torch.arange(len(owner), device=frames.device) - (count.cumsum(0) - count)[owner]
