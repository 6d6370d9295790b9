"""The worker's memory is lent to one request at a time, and all comes back."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from hetero_sglang.transfer.scratch import Scratch

PAGE, PAGES = 4096, 37


class Lender(RuleBasedStateMachine):
    """Against a model that marks every page with its loan."""

    loans = Bundle("loans")

    def __init__(self) -> None:
        super().__init__()
        self.scratch = Scratch(PAGES * PAGE)
        self.owner: list[range | None] = [None] * PAGES

    @rule(target=loans, nbytes=st.integers(0, (PAGES + 2) * PAGE))
    def lend(self, nbytes: int) -> object:
        loan, pages = self.scratch.lend(nbytes), max(1, -(-nbytes // PAGE))
        gaps = "".join("." if owner is None else "#" for owner in self.owner).split("#")
        assert (loan is None) == (max(map(len, gaps)) < pages)
        if loan is None:
            return multiple()
        assert loan.start % PAGE == 0 and len(loan) == pages * PAGE >= nbytes
        first = loan.start // PAGE
        assert all(owner is None for owner in self.owner[first : first + pages])
        self.owner[first : first + pages] = [loan] * pages
        return loan

    @rule(loan=consumes(loans))
    def take_back(self, loan: range) -> None:
        first, held = loan.start // PAGE, loan in self.owner
        if not held:  # all was taken back before
            return
        self.scratch.take_back(loan)
        self.owner[first : first + len(loan) // PAGE] = [None] * (len(loan) // PAGE)
        with pytest.raises(ValueError):
            self.scratch.take_back(loan)

    @rule()
    def take_all_back(self) -> None:
        self.scratch.take_all_back()
        self.owner = [None] * PAGES

    @invariant()
    def accounts_for_every_page(self) -> None:
        assert sum(map(len, self.scratch._lent)) == (PAGES - self.owner.count(None)) * PAGE

    def teardown(self) -> None:
        for loan in {owner for owner in self.owner if owner is not None}:
            self.scratch.take_back(loan)
        assert self.scratch.lend(PAGES * PAGE) == range(PAGES * PAGE)
        self.scratch.close()


Lender.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestNoTwoLoansOverlap = Lender.TestCase
