"""Two ranks, however differently sure of a branch they are: all leave or none, and each is asked about all words."""

from __future__ import annotations

from multiprocessing import get_context
from typing import Any

import pytest
import rank
import torch

from hetero_sglang.exits.confidence import MEASURES, measure

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a process that has a GPU cannot be forked")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks has seen that talk over gloo."""
    folder, context = tmp_path_factory.mktemp("ranks"), get_context("fork")
    ranks = [context.Process(target=rank.work, args=(number, folder), daemon=True) for number in range(2)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join(180)
        each.kill()
    assert [each.exitcode for each in ranks] == [0, 0]
    return [torch.load(folder / f"{number}.pt") for number in range(2)]


def test_a_batch_leaves_where_every_rank_is_sure_of_every_request(both: list[dict[str, Any]]) -> None:
    """Where a rank has no number at all, nobody leaves."""
    one, other = both
    assert one["told"] == other["told"]
    apart = with_nan = left = 0
    for (mine, i_left), (its, it_left) in zip(one["asked"], other["asked"], strict=True):
        would = [all(sure >= rank.THRESHOLD for sure in each) for each in (mine, its)]
        assert i_left == it_left == all(would)
        left += i_left
        apart += would[0] != would[1]
        with_nan += any(sure != sure for sure in mine) and would[1]
    assert min(left, apart, with_nan) > 3


@pytest.mark.parametrize("confidence", MEASURES)
def test_branches_know_all_words_of_a_head_that_is_shared_out(both: list[dict[str, Any]], confidence: str) -> None:
    whole, states = rank.head(), rank.states()
    for kind, branch in rank.kinds().items():
        logits = branch.logits(states, lambda hidden: hidden @ whole.T)
        sure = measure(confidence, logits)
        for seen in both:
            torch.testing.assert_close(seen["branches"][confidence][kind], (logits, sure))
