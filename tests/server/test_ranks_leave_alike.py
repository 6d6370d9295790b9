"""Two ranks leave early where both would, though each draws for itself: neither waits for the other, no row is lost.

tests/early_exit/test_ranks_leave_together.py has the law for ranks that are sure of a branch in their own ways."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families
from servers import Servers
from test_conservation import check_empty_handed, play, settled
from test_early_exit import check_tokens, exits_of, first_choices, prompts
from test_speculation import check_drafts
from tiny_exits import LAYERS, MARKS
from waiting import wait_for

from benchmarks.launch import Server
from benchmarks.recall import Language
from hetero_sglang.sglang.metrics import PREFIX


def by_rank(server: Server) -> list[dict[tuple[str, str], float]]:
    """What each rank has exported of early exit, by metric and layer."""
    found: dict[str, dict[tuple[str, str], float]] = {}
    for family in text_string_to_metric_families(server.get("/metrics")):
        for sample in family.samples:
            if sample.name.startswith(f"{PREFIX}exit"):
                key = sample.name.removeprefix(PREFIX), sample.labels.get("layer", "")
                found.setdefault(sample.labels["tp_rank"], {})[key] = sample.value
    return [found[rank] for rank in sorted(found)]


def check_alike(server: Server) -> dict[tuple[str, str], float]:
    """What both ranks say, once both have exported it."""

    def alike() -> dict[tuple[str, str], float] | None:
        one, other = by_rank(server)
        return one if one == other else None

    found = wait_for(alike, lambda: f"ranks have exported {by_rank(server)}")
    assert found is not None and all(found["exits_total", str(layer)] > 0 for layer in LAYERS)
    return found


def together(server: Server, asked: list[list[int]], count: int) -> list[list[int]]:
    """What is said to all, four at once."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda ids: server.generate(ids, count, ignore_eos=True)["output_ids"], asked))


def exact(said: list[int]) -> int:
    """How many tokens there are before the first that has left early."""
    return next(n for n, token in enumerate(said) if token in MARKS)


@pytest.mark.server("exits-ranks")
def test_deep_tokens_are_those_of_all_layers_on_as_many_ranks(server: Server, language: Language) -> None:
    """Of requests that are retracted by force, in pages, several at once; and of a next turn."""
    asked = prompts(language, 8, 11)
    said = together(server, asked, 40)
    turn = asked[0] + said[0] + prompts(language, 1, 4)[0][:20]
    reply = server.generate(turn, 30, ignore_eos=True)
    page, shared = 16, len(turn) - 20  # perhaps with the last token that was said
    assert shared - 17 - page < reply["meta_info"]["cached_tokens"] <= shared
    check_empty_handed(settled(server))
    server.flush()  # full depth is to find no row of these
    pairs = [*zip(asked, said, strict=True), (turn, reply["output_ids"])]
    assert sum(check_tokens(server, ids, mine) for ids, mine in pairs) > 20
    assert "Testing retraction" in server.log.read_text(errors="replace")


@pytest.mark.server("exits-ranks")
def test_nothing_is_lost_on_any_rank(server: Server, language: Language) -> None:
    """Of requests that finish, are aborted, retracted and evicted, exact and compressed."""
    play(server, language, 9, 4)
    stats = settled(server)["early_exit"]
    ranks = check_alike(server)
    assert stats["waiting"] == 0 and ranks["exit_layers_total", ""] == stats["layers_run"]
    assert {str(layer): ranks["exits_total", str(layer)] for layer in LAYERS} == stats["exits"]


@pytest.mark.server("exits-ranks-copied")
def test_tokens_before_a_first_exit_are_those_of_all_layers(server: Server, language: Language) -> None:
    """And no others are shared, where skipped layers keep what they make of the state at the exit."""
    asked = prompts(language, 8, 11)
    said = together(server, asked, 40)
    server.flush()
    alone = server.generate(asked[0], 30, ignore_eos=True)["output_ids"]
    again = server.generate(asked[0] + alone, 4)
    assert again["meta_info"]["cached_tokens"] == len(asked[0]) + exact(alone) - 1
    server.flush()
    for ids, mine in zip(asked, said, strict=True):
        before = mine[: exact(mine)]
        assert first_choices(server, ids + before, len(ids)) == before
    check_alike(server)


@pytest.mark.server("exits-ranks-copied")
def test_aborted_requests_stop_on_both_ranks(server: Server, language: Language) -> None:
    before = exits_of(server)["tokens"]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(server.generate, ids, 2000, ignore_eos=True) for ids in prompts(language, 4, 5)]
        wait_for(lambda: exits_of(server)["tokens"] >= before + 40, "the requests write nothing")
        server.post("/abort_request", {"rid": "", "abort_all": True})
        kinds = {job.result()["meta_info"]["finish_reason"]["type"] for job in jobs if job.exception() is None}
    assert kinds <= {"abort"}
    assert len(server.generate(prompts(language, 1, 6)[0], 40, ignore_eos=True)["output_ids"]) == 40
    check_alike(server)


@pytest.mark.slow
@pytest.mark.server("drafts-self-ranks", "plain-precise")
def test_drafts_of_a_branch_lose_nothing_on_two_ranks(server: Server, servers: Servers, language: Language) -> None:
    check_drafts(server, servers.get("plain-precise"), language)
    check_empty_handed(settled(server))
