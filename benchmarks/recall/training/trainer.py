"""The training loop."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.recall.mix import KINDS
from benchmarks.recall.mixed_sampler import MixedSampler

from .data import Batch, Batches, load
from .loss import targets_of, weighted_loss
from .model import RecallModel
from .schedule import Clock, Stage, parse_stages, rate_factor
from .settings import Settings

_EVERY = 10.0  # seconds between lines of progress
_SAVE_EVERY = 30.0  # seconds between checkpoints: a training that is ended from outside leaves its last one


@dataclass
class Totals:
    """What a training did."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    waited: float = 0.0  # seconds of these spent on waiting for data
    gave_up: bool = False


class Trainer:
    """Trains one model; `step` may also be called alone, on batches of one's own."""

    def __init__(
        self,
        model: RecallModel,
        sampler: MixedSampler,
        settings: Settings,
        log: Callable[[str], None] | None = None,
        save: Callable[[], None] | None = None,
    ) -> None:
        self.model, self.sampler, self.settings, self.save = model, sampler, settings, save
        self.device = next(model.parameters()).device
        self.cuda = self.device.type == "cuda"
        self.log = log or (lambda line: print(line, file=sys.stderr, flush=True))
        self.totals = Totals()
        self._saved = time.monotonic()
        matrices = [p for p in model.parameters() if p.dim() == 2]
        vectors = [p for p in model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.95), fused=self.cuda)
        self.loss = torch.compile(weighted_loss) if self.cuda and settings.compile else weighted_loss
        if self.cuda and settings.compile:
            model.compile_parts()

    def gradients(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Add the batch's gradients; its loss (scalar), kinds [T] and right predictions [T]."""
        ids, kinds = batch
        following, kind, weight = targets_of(ids, kinds)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cuda):
            loss, right = self.loss(self.model(ids.long()), self.model.lm_head.weight, following, weight)
        loss.backward()
        return loss.detach(), kind, right

    def step(self, batch: Batch, fraction: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One optimizer step at `fraction` of the training; returns what `gradients` does."""
        factor = rate_factor(self.totals.steps, fraction, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        done = self.gradients(batch)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.totals.steps += 1
        self.totals.tokens += batch[0].numel()
        return done

    def train(self) -> Totals:
        """All stages; ends early, with `gave_up` set, where recall is not learned."""
        stages = parse_stages(self.settings.stages)
        if self.cuda and self.settings.compile:
            self._compile(stages[0].length)
        clock = Clock(self.settings.minutes, self.settings.steps)
        for number, stage in enumerate(stages):
            accuracy = self._stage(number, stage, clock)
            if accuracy is not None and stage.length >= 1024 and accuracy < self.settings.stop_below:
                self.log(f"answer accuracy {accuracy:.3f} after {stage.length} tokens: recall is not learned, ending")
                self.totals.gave_up = True
                break
        self.totals.seconds = clock.seconds
        return self.totals

    def _batches(self, length: int, *seed: int) -> Batches:
        return Batches(self.sampler, length, max(1, self.settings.batch_tokens // length), (self.settings.seed, *seed))

    def _compile(self, length: int) -> None:
        """One pass whose gradients are thrown away: compilation counts as no training time."""
        began = time.monotonic()
        self.gradients(next(load(self._batches(length, 0), 0, self.device)))
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        self.log(f"compiled in {time.monotonic() - began:.0f} s")

    def _stage(self, number: int, stage: Stage, clock: Clock) -> float | None:
        """Train to the stage's end; the answer accuracy of its last batch, None if there was none."""
        if clock.fraction >= stage.end:
            return None
        data = load(self._batches(stage.length, number), self.settings.workers, self.device)
        shown, done = time.monotonic(), None
        while clock.fraction < stage.end - 1e-9:  # shares are sums of floats
            began = time.monotonic()
            batch = next(data)
            self.totals.waited += time.monotonic() - began
            done = self.step(batch, clock.fraction)
            clock.step += 1
            if time.monotonic() - shown > _EVERY:
                self._show(stage.length, clock, *done)
                shown = time.monotonic()
            if self.save and time.monotonic() - self._saved > _SAVE_EVERY:
                self.save()
                self._saved = time.monotonic()
        return None if done is None else self._show(stage.length, clock, *done)

    def _show(self, length: int, clock: Clock, loss: torch.Tensor, kind: torch.Tensor, right: torch.Tensor) -> float:
        """Log one line; the accuracy over all answers."""
        shares = [f"{name} {_mean(right[kind == at]):.3f}" for at, name in enumerate(KINDS, start=1)]
        self.log(
            f"{clock.seconds:5.0f} s  {length:5d} tokens  step {self.totals.steps}  {self.totals.tokens / 1e6:.0f}M  "
            f"loss {loss.item():.4f}  {'  '.join(shares)}  waited {self.totals.waited:.0f} s"
        )
        return _mean(right[kind > 0])


def _mean(right: torch.Tensor) -> float:
    return right.float().mean().item()
