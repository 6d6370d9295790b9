"""A change of the configuration is made by every rank or by none, and SGLang's own changes stay SGLang's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.io_struct import SetInternalStateReq

from hetero_sglang.config.tuning import Tuning
from hetero_sglang.sglang import tune


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A rank's runtime; `others` is the least that another rank says."""
    made = SimpleNamespace(
        settings=SimpleNamespace(tuning=Tuning(0.9, 4)), engine=SimpleNamespace(fixed=dict), others=1, asked=0
    )

    def least(mine: int) -> int:
        made.asked += 1
        return min(mine, made.others)

    monkeypatch.setattr(tune, "runtime", lambda: made)
    monkeypatch.setattr(tune, "least_of_ranks", least)
    return made


def sent(message: dict[str, Any]) -> bool:
    def original(scheduler: Any, request: Any) -> Any:
        return SimpleNamespace(updated="SGLang's")

    return tune.set_internal_state(original, None, SetInternalStateReq(server_args=message)).updated


def test_all_agree(rank: SimpleNamespace) -> None:
    change = {"drift_threshold": 0.5, "retrieval": False}
    assert tune.decode(tune.encode(change)) == change
    assert sent(tune.encode(change)) is True and rank.settings.tuning == Tuning(0.5, 4, False)


def test_one_that_cannot_keeps_all_from_it(rank: SimpleNamespace) -> None:
    rank.others = 0
    assert sent({"hetero_monitor_interval": 2}) is False and rank.settings.tuning == Tuning(0.9, 4)
    rank.others = 1
    assert sent({"hetero_monitor_interval": 0, "hetero_retrieval": 0}) is False
    assert rank.settings.tuning == Tuning(0.9, 4) and rank.asked == 2, "the others wait for its word"


@pytest.mark.parametrize("message", [{}, {"pp_max_micro_batch_size": 8}, {"pp_max_micro_batch_size": 8, "hetero_x": 1}])
def test_what_is_sglangs_goes_to_sglang(rank: SimpleNamespace, message: dict[str, Any]) -> None:
    assert sent(message) == "SGLang's" and rank.asked == 0
