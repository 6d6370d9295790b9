"""The training loop: the expert's replies are imitated, in worlds that grow."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.recall.training.loss import weighted_loss
from benchmarks.recall.training.schedule import Clock, parse_stages, rate_factor
from benchmarks.recall.training.settings import Settings

from .batches import Batch, Batches, load
from .demonstration import ACTION, NONE, PLACE, SEEN, TEXT, THING
from .layout import Layout
from .model import Navigator

# Of kinds of targets. Where a thing stands that was seen before can be looked up in the history: what replies need.
WEIGHTS = {TEXT: 0.02, THING: 1.0, PLACE: 1.0, ACTION: 1.0, NONE: 0.0, SEEN: 0.2}
_NAMES = {"thing": THING, "place": PLACE, "action": ACTION, "seen": SEEN}
_EVERY, _SAVE_EVERY = 10.0, 30.0  # seconds between lines of progress, and between states kept


class Trainer:
    """Trains one model; a state kept at `state` is gone on from.

    Every `pause_every` seconds `pause` is called with the seconds trained; its own time counts for nothing. `export`
    is called when a state is kept.
    """

    def __init__(
        self, model: Navigator, layout: Layout, settings: Settings, state: Path | None = None,
        slips: float = 0.05, log: Callable[[str], None] | None = None,
        pause: Callable[[float], None] | None = None, pause_every: float = 0,
        export: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.layout, self.settings, self.state = model, layout, settings, state
        self.slips = slips
        self.device = model.lm_head.weight.device
        self.cuda = self.device.type == "cuda"
        self.log = log or (lambda line: print(line, file=sys.stderr, flush=True))
        self.clock = Clock(settings.minutes, settings.steps)
        self.pause, self.pause_every, self.export = pause, pause_every, export
        self.tokens, self.waited, self.starts = 0, 0.0, 0
        matrices = [p for p in model.parameters() if p.dim() == 2]
        vectors = [p for p in model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.95), fused=self.cuda)
        self.weights = weights_on(self.device)
        self.loss = weighted_loss
        if self.cuda:
            torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every length, which takes most of a step
        if self.cuda and settings.compile:
            self.loss = torch.compile(weighted_loss)
            model.compile_parts()

    def train(self) -> None:
        """All stages, from where the state left off."""
        self._resume()
        for stage in parse_stages(self.settings.stages):
            if self.clock.fraction >= stage.end - 1e-9:
                continue
            data = load(self._batches(stage.length), self.settings.workers, self.device)
            shown = time.monotonic()
            while self.clock.fraction < stage.end - 1e-9:  # shares are sums of floats
                began = time.monotonic()
                batch = next(data)
                self.waited += time.monotonic() - began
                done = self.step(batch)
                now = time.monotonic()
                if now - shown > _EVERY or self.clock.fraction >= stage.end - 1e-9:
                    self._show(stage.length, batch, *done)
                    shown = now
                if self.pause and self.pause_every and self.clock.seconds > self._paused + self.pause_every:
                    self._pause(self.pause)
                if self.state and now - self._saved > _SAVE_EVERY:
                    self._save(self.state)

    def step(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of the optimizer: the loss (scalar), and which targets [T] were the model's first choice."""
        rate = self.settings.rate * rate_factor(self.clock.step, self.clock.fraction, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cuda):
            hidden = self.model(batch.ids.long(), batch.lengths)
            weight = self.weights[batch.kinds.long()]
            loss, right = self.loss(hidden, self.model.lm_head.weight, batch.targets.long(), weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.clock.step += 1
        self.tokens += len(batch.ids)
        return loss.detach(), right

    def _pause(self, pause: Callable[[float], None]) -> None:
        began, self._paused = time.monotonic(), self.clock.seconds
        pause(self._paused)
        self.clock.began += time.monotonic() - began

    def totals(self) -> dict[str, Any]:
        """What the training did."""
        return {
            "steps": self.clock.step, "tokens": self.tokens, "seconds": round(self.clock.seconds, 1),
            "waited": round(self.waited, 1), "starts": self.starts + 1,
        }  # fmt: skip

    def _batches(self, rooms: int) -> Batches:
        seed = self.settings.seed + 1000 * self.starts  # a training that goes on draws other worlds
        return Batches(self.layout, rooms, self.settings.batch_tokens, seed, self.slips)

    def _resume(self) -> None:
        if self.state and self.state.exists():
            kept = torch.load(self.state, map_location=self.device)
            self.model.load_state_dict(kept["model"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.clock.step, self.tokens, self.starts = kept["step"], kept["tokens"], kept["starts"] + 1
            self.clock.began -= kept["seconds"]
            self.log(f"going on after step {self.clock.step}, {kept['seconds']:.0f} s")
        self._saved, self._paused = time.monotonic(), self.clock.seconds

    def _save(self, path: Path) -> None:
        scratch = path.with_suffix(".tmp")
        kept = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.clock.step}
        torch.save({**kept, "tokens": self.tokens, "starts": self.starts, "seconds": self.clock.seconds}, scratch)
        scratch.replace(path)
        if self.export:
            self.export()
        self._saved = time.monotonic()

    def _show(self, rooms: int, batch: Batch, loss: torch.Tensor, right: torch.Tensor) -> None:
        shares = [f"{name} {right[batch.kinds == kind].float().mean().item():.3f}" for name, kind in _NAMES.items()]
        self.log(
            f"{self.clock.seconds:5.0f} s  {rooms} rooms  step {self.clock.step}  {self.tokens / 1e6:.1f}M  "
            f"loss {loss.item():.4f}  {'  '.join(shares)}  waited {self.waited:.0f} s"
        )


def weights_on(device: torch.device | str) -> torch.Tensor:
    """WEIGHTS by kind, float32."""
    return torch.tensor([WEIGHTS[kind] for kind in range(len(WEIGHTS))], device=device)
