"""A token of each of a batch's requests on its way through the layers, and those that wait behind a branch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch


@dataclass(eq=False)
class Turn:
    """A new token of each of B requests. State between two layers is the sum of `hidden` and `residual`, kept apart as
    SGLang's layers take it."""

    ids: torch.Tensor  # [B]
    positions: torch.Tensor  # [B]
    slots: torch.Tensor  # [B], where its rows go
    lengths: torch.Tensor  # [B], tokens of each request with this one
    on_host: torch.Tensor  # the same there
    clock: int  # of the step that it is (engine.begin_decode)
    hidden: torch.Tensor  # [B, H]
    residual: torch.Tensor | None = None  # [B, H]; None: no layer has run

    @property
    def rest(self) -> torch.Tensor:
        """`residual`, once a layer has run."""
        assert self.residual is not None
        return self.residual

    @property
    def state(self) -> torch.Tensor:
        """[B, H]."""
        return self.hidden if self.residual is None else self.hidden + self.residual

    def of(self, rows: list[int]) -> Turn:
        """The same for some of the requests."""
        tensors = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "clock"}
        some = {name: values[rows] for name, values in tensors.items() if values is not None}
        return replace(self, **some)


def turn_of(ids: torch.Tensor, positions: torch.Tensor, batch: Any, clock: int, hidden: torch.Tensor) -> Turn:
    """That of a decode batch, whose tensors are the next pass's too."""
    return Turn(
        ids.clone(), positions.clone(), batch.out_cache_loc.clone(), batch.seq_lens.clone(),
        batch.seq_lens_cpu.clone(), clock, hidden,
    )  # fmt: skip


class Waiting:
    """Turns that have left at each stop, oldest first, of one batch; the deeper they wait the older they are."""

    def __init__(self, stops: int) -> None:
        self.requests: list[Any] = []  # whose turns they are
        self.at: list[list[Turn]] = [[] for _ in range(stops)]

    @property
    def count(self) -> int:
        """Tokens of each request that wait."""
        return sum(map(len, self.at))

    def keep(self, requests: list[Any]) -> None:
        """Only these requests' turns, in their order; others have ended or were retracted."""
        if not self.count or [id(each) for each in requests] == [id(each) for each in self.requests]:
            self.requests = requests
            return
        rows = [next(row for row, mine in enumerate(self.requests) if mine is each) for each in requests]
        self.at = [[turn.of(rows) for turn in turns] if rows else [] for turns in self.at]
        self.requests = requests

    def forget(self, requests: list[Any]) -> None:
        """These begin anew."""
        gone = {id(each) for each in requests}
        if self.count and gone & {id(each) for each in self.requests}:
            self.keep([each for each in self.requests if id(each) not in gone])

    def pick(self, stop: int) -> list[Turn]:
        """Those that wait there go on."""
        turns, self.at[stop] = self.at[stop], []
        return turns
