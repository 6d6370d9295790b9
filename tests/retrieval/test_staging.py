"""Staging rows are lent to one owner at a time, and all come back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from hetero_sglang.transfer.ring import Segment
from hetero_sglang.transfer.staging import StagingRing

ROWS = 37


class StagingMachine(RuleBasedStateMachine):
    """Against a model that marks every row with its owner."""

    segments = Bundle("segments")

    def __init__(self) -> None:
        super().__init__()
        self.ring = StagingRing(ROWS, 3, 5, torch.float16)
        self.owner: list[Segment | None] = [None] * ROWS

    @rule(target=segments, rows=st.integers(1, ROWS + 2))
    def acquire(self, rows: int) -> object:
        segment = self.ring.acquire(rows)
        gaps = "".join("." if owner is None else "#" for owner in self.owner).split("#")
        assert (segment is None) == (max(map(len, gaps)) < rows)
        if segment is None:
            return multiple()
        assert segment.rows == rows
        assert all(owner is None for owner in self.owner[segment.start : segment.end])
        self.owner[segment.start : segment.end] = [segment] * rows
        for view, value in zip(self.ring.views(segment), (segment.start, -segment.start), strict=True):
            view.fill_(value)
        return segment

    @rule(segment=consumes(segments))
    def release(self, segment: Segment) -> None:
        k, v = self.ring.views(segment)
        assert k.shape == (segment.rows, 3) and bool((k == segment.start).all())
        assert v.shape == (segment.rows, 5) and bool((v == -segment.start).all())
        self.ring.release(segment)
        self.owner[segment.start : segment.end] = [None] * segment.rows
        with pytest.raises(ValueError):
            self.ring.release(segment)

    @invariant()
    def accounts_for_every_row(self) -> None:
        self.ring.check_integrity()
        assert self.ring.free_rows == self.owner.count(None)

    def teardown(self) -> None:
        for segment in {owner for owner in self.owner if owner is not None}:
            self.ring.release(segment)
        assert self.ring.acquire(ROWS) == Segment(0, ROWS)
        self.ring.close()


StagingMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestNoTwoLiveSegmentsOverlap = StagingMachine.TestCase


@pytest.mark.parametrize("rows", [0, -1])
def test_a_segment_has_rows(rows: int) -> None:
    with pytest.raises(ValueError):
        StagingRing(4, 1, 1, torch.float16).acquire(rows)
