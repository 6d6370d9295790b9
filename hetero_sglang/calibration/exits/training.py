"""Branches learn what the last layer says: steps of Adam, which a later run can go on with."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from hetero_sglang.calibration.exits.options import Options
from hetero_sglang.calibration.exits.states import Batch, States
from hetero_sglang.calibration.exits.teacher import Teacher
from hetero_sglang.errors import HeteroError
from hetero_sglang.exits.branch import Branch

_WARM = 0.05  # of the steps, in which the rate rises
_BETAS = (0.9, 0.99)


class Training:
    """Branches of one kind, all trained at once on the same tokens."""

    def __init__(self, branches: Sequence[Branch], teacher: Teacher, options: Options, words: torch.Tensor) -> None:
        """`words`: those that the branches know, all [V] or the frequent ones [V'], ascending."""
        self._branches = [_trainable(branch) for branch in branches]
        self._teacher, self._options, self._words = teacher, options, words
        self._parameters = [p for branch in self._branches for p in branch.tensors().values() if p.requires_grad]
        self._optimiser = torch.optim.Adam(self._parameters, lr=options.rate, betas=_BETAS)
        self.step = 0

    @property
    def branches(self) -> tuple[Branch, ...]:
        """As they are now, float32. Raises HeteroError where training made numbers that are not finite."""
        return tuple(
            replace(branch, **{name: tensor.detach().clone() for name, tensor in branch.tensors().items()})
            for branch in self._branches
        )

    def run(
        self,
        states: States,
        count: int,
        advance: Callable[[float], object] = lambda loss: None,
        progress: Path | None = None,
        save_seconds: float = 0.0,
    ) -> None:
        """The steps that are left, on the first `count` records; `advance` is told of each step's loss. Now and then
        all is kept in the file `progress`, from which `load` goes on to the same result."""
        kept = time.monotonic()
        while self.step < self._options.steps:
            loss = self._learn(states.rows(self._batch(count), self._words.device))
            self.step += 1
            if progress is not None and time.monotonic() - kept >= save_seconds:
                self.save(progress)
                kept = time.monotonic()
            advance(loss)

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        state = {
            "step": self.step,
            "parameters": [p.detach() for p in self._parameters],
            "optimiser": self._optimiser.state_dict(),
        }
        temporary = path.with_name(f"{path.name}.part")
        try:
            torch.save(state, temporary)
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            raise HeteroError(f"{path} cannot be written ({str(error).splitlines()[0]}); free some space.") from None

    def load(self, path: Path) -> None:
        """Goes on where `save` was; nothing where there is no such file."""
        if not path.exists():
            return
        state = torch.load(path, map_location=self._words.device, weights_only=True)
        self.step = state["step"]
        with torch.no_grad():
            for mine, kept in zip(self._parameters, state["parameters"], strict=True):
                mine.copy_(kept)
        self._optimiser.load_state_dict(state["optimiser"])

    def _batch(self, count: int) -> list[int]:
        """Records of this step: every one once in an epoch, in an order of the epoch's own."""
        size = min(self._options.batch, count)
        epoch, at = divmod(self.step, count // size)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self._options.seed + epoch))
        return order[at * size : (at + 1) * size].tolist()

    def _learn(self, batch: Batch) -> float:
        for group in self._optimiser.param_groups:
            group["lr"] = self._options.rate * _schedule((self.step + 1) / self._options.steps)
        with torch.no_grad():
            said = self._teacher.logits(batch.states[:, -1], self._words) - batch.divisor[:, None]  # [n, V'], log
            share = self._target(said.exp())  # [n, V], or [n, V' + 1]
        self._optimiser.zero_grad(set_to_none=True)
        total = 0.0
        for number, branch in enumerate(self._branches):  # one graph at a time is held
            loss = self._loss(branch, batch.states[:, number].float(), share)
            loss.backward()
            total += float(loss.detach())
        self._optimiser.step()
        return total / len(self._branches)

    def _target(self, share: torch.Tensor) -> torch.Tensor:
        """What a branch is to say, of the teacher's probabilities [n, V'] of the words it knows: what is left is of
        any other."""
        if share.shape[1] == len(self._teacher.head):
            return share
        return torch.cat([share, (1.0 - share.sum(-1, keepdim=True)).clamp(min=0.0)], 1)

    def _loss(self, branch: Branch, x: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        """Divergence from the teacher, in nats a token. Its first choice, weighed apart, makes branches too sure."""
        said = branch.scores(x, lambda hidden: self._teacher.logits(hidden, self._words)).log_softmax(-1)
        return (torch.special.xlogy(share, share) - share * said).sum(-1).mean()


def _trainable(branch: Branch) -> Branch:
    learned = {name: tensor for name, tensor in branch.tensors().items() if name not in ("tokens", "rest")}
    return replace(branch, **{name: nn.Parameter(tensor.clone()) for name, tensor in learned.items()})


def _schedule(done: float) -> float:
    """Of the rate, by the share of steps that are done: up, then down along a cosine."""
    return min(done / _WARM, 0.5 + 0.5 * math.cos(math.pi * done))
