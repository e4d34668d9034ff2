"""A transducer with a stateless predictor that has learnt, in seconds, to hear made-up speech.

Every token has a voice, a direction in the encoder's 256 dimensions. It is heard in one frame, a little in those
beside it, together with the voice of a rival and with noise. A token is mostly followed by one of a few, and so is
its rival: the predictor has something to say, and what is said next decides between the two.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from asr.encoders.conformer import ConformerConfig
from asr.families.transducer.config import TransducerConfig
from asr.families.transducer.emitter import TransducerEmitter
from asr.families.transducer.model import Transducer
from asr.losses.rnnt import transducer_loss_from_logp

VOCAB, WIDTH, FRAMES = 500, 256, 250
FOLLOWERS, SURPRISE = 15, 0.3
EXPECTATION = 0.3
NOISE = 0.05


class PlantedTransducer:
    """The model, ``encoded`` ``(utterances, 250, 256)``, and what is ``said`` in each utterance."""

    def __init__(self, utterances: int, updates: int, seed: int = 0) -> None:
        torch.manual_seed(seed)
        encoder = ConformerConfig(layers=1, width=WIDTH)
        self.model = Transducer(TransducerConfig(encoder=encoder, joint_width=WIDTH), VOCAB)
        self._voice = torch.nn.functional.normalize(torch.randn(VOCAB, WIDTH), dim=-1)
        follower = torch.randint(VOCAB, (VOCAB, FOLLOWERS))
        self._follower = torch.cat((follower, follower[:, : FOLLOWERS // 3] ^ 1), dim=-1)
        self._teach(updates)
        self.model.eval()
        spoken = [self._speak(FRAMES) for _ in range(utterances)]
        self.encoded = torch.stack([frames for frames, _ in spoken])
        self.said = [tokens for _, tokens in spoken]

    def to(self, device: str) -> None:
        """Search on ``device`` from here on."""
        self.model.to(device)
        self.encoded = self.encoded.to(device)

    def _speak(self, frames: int) -> tuple[Tensor, list[int]]:
        """Encoder frames ``(frames, D)`` and the tokens said, one in 3 to 8 frames."""
        encoded, tokens = NOISE * torch.randn(frames, WIDTH), []
        before, frame = int(torch.randint(VOCAB, ())), int(torch.randint(1, 4, ()))
        while frame < frames - 1:
            token = self._follow(before)
            loud, beaten = torch.rand(2).tolist()
            voice = (1 - 0.25 * loud**3) * self._voice[token] + beaten**1.5 * self._voice[token ^ 1]
            encoded[frame] += voice
            for beside in (frame - 1, frame + 1):
                encoded[beside] += 0.3 * float(torch.rand(())) * voice
            tokens.append(token)
            before, frame = token, frame + int(torch.randint(3, 9, ()))
        return encoded, tokens

    def _follow(self, token: int) -> int:
        """A token that comes behind ``token``: mostly one of a few, sometimes any."""
        if float(torch.rand(())) < SURPRISE:
            return int(torch.randint(VOCAB, ()))
        return int(self._follower[token, int(torch.randint(self._follower.shape[1], ()))])

    def _teach(self, updates: int) -> None:
        """Fit predictor and joint; the joint begins as a detector of voices that are not the last token's."""
        joint, predictor = self.model.joint, self.model.predictor
        with torch.no_grad():
            torch.nn.init.eye_(joint.frame.weight)
            joint.frame.bias.zero_()
            joint.frame.weight.mul_(2.0)
            joint.output.weight[:-1] = 12 * self._voice
            joint.output.weight[-1].zero_()
            joint.output.bias.zero_()
            joint.output.bias[-1] = 17.0
            last = predictor.embedding.weight.mul_(0.1).view(2, VOCAB + 1, WIDTH)[1]
            rivals = self._voice.view(-1, 2, WIDTH).flip(1).view(VOCAB, WIDTH)
            last[:-1] -= 2 * (self._voice + rivals)  # once it was said, neither is heard any longer
            last[:-1] += EXPECTATION * self._voice[self._follower].sum(1)
        parts = [*joint.parameters(), *predictor.parameters()]
        optimizer = torch.optim.AdamW(parts, lr=5e-4, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, total_steps=updates + 1)
        for _ in range(updates):
            frames, texts = zip(*(self._speak(40) for _ in range(16)), strict=True)
            loss = -self.logp(torch.stack(frames), texts).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()

    def logp(self, encoded: Tensor, texts: tuple[list[int], ...] | list[list[int]]) -> Tensor:
        """Log probability ``(B,)`` of each text, over all its alignments."""
        lengths = torch.tensor([len(text) for text in texts])
        labels = torch.zeros((len(texts), int(lengths.max())), dtype=torch.long)
        for row, text in zip(labels, texts, strict=True):
            row[: len(text)] = torch.tensor(text, dtype=torch.long)
        frames = torch.full((len(texts),), encoded.shape[1])
        joint = self.model.joint
        cells = joint.lattice_logp(
            joint.frame(encoded), self.model.predictor(labels), labels, frames, lengths
        )
        return -transducer_loss_from_logp(*cells, frames, lengths)

    @torch.no_grad()
    def emitter(self, utterances: int, candidates: int | None) -> TransducerEmitter:
        """The first utterances, for a search."""
        encoded = self.encoded[:utterances]
        lengths = torch.full((len(encoded),), FRAMES, device=encoded.device)
        return TransducerEmitter(self.model, encoded, lengths, candidates)

    @torch.no_grad()
    def sharpness(self) -> tuple[float, float]:
        """Median nats by which blank beats the best label where it wins, and loses where a label wins (greedy)."""
        emitter = self.emitter(8, None)
        state = emitter.start()[:, None]
        quiet, loud = [], []
        for frame in range(FRAMES):
            scores = emitter.score(torch.full((8, 1), frame), state)
            best, token = scores.label[:, 0, 0].max(-1)
            gap = scores.blank_logp[:, 0, 0] - best
            quiet += gap[gap > 0].tolist()
            loud += (-gap[gap <= 0]).tolist()
            said = gap <= 0
            state[said, 0] = emitter.advance(state[said, 0], token[said])
        return tuple(float(torch.tensor(x).median()) if x else math.nan for x in (quiet, loud))  # type: ignore
