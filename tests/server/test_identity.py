"""Where every row is kept, not one token differs from plain SGLang; where not, recall holds."""

from __future__ import annotations

import pytest
from servers import Servers
from test_conservation import settled
from test_turns import grown

from benchmarks.identity import cases, collect, differing
from benchmarks.launch import Server
from benchmarks.recall import Language, evaluate


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        pytest.param("plain-paged", 3000, marks=pytest.mark.server("whole-paged", "plain-paged")),
        pytest.param("plain", 2900, marks=pytest.mark.server("short-whole", "plain")),
    ],
)
def test_greedy_tokens_equal_plain_sglang(
    server: Server, servers: Servers, language: Language, name: str, limit: int
) -> None:
    before = server.stats()["compressed_requests"]
    requests = cases(language, 10, limit, 3)
    assert differing(requests, collect(servers.get(name), requests), collect(server, requests)) == []
    assert server.stats()["compressed_requests"] == before


@pytest.mark.server("indexed")
def test_heads_with_a_key_index_bring_what_questions_ask_for(server: Server, language: Language) -> None:
    before = server.stats()
    result = evaluate(server.url, language, 4096, documents=1, turns=2, names=8, seed=21)
    compressed, kept, whole = grown(server, before, "compressed_requests", "kept_bytes", "dense_bytes")
    assert compressed == 2 and kept < 0.31 * whole
    fetched, late = grown(server, before, "fetched_rows", "late_rows")
    assert fetched > 0 and late == 0 and not server.stats()["worker_up"]
    assert result.score.right == result.score.total == 16, result.to_json()


@pytest.mark.server("eight-bits")
def test_keys_and_values_in_8_bits_answer_as_well_in_half_the_bytes(server: Server, language: Language) -> None:
    """Also a next turn, which attends to what the one before has left."""
    before = server.stats()
    result, stats = evaluate(server.url, language, 4096, documents=1, turns=2, names=8, seed=21), server.stats()
    layers, heads, row = 8, 4, 2 * 64  # recall-8m's
    assert stats["host_bytes"] == pytest.approx(layers * heads * row * stats["token_slots"], rel=0.01)
    hot = 0.35 - 80 / 8 / row  # less the index's 80 bits; a row has a position and a last use beside it
    compressed, kept, whole = grown(server, before, "compressed_requests", "kept_bytes", "dense_bytes")
    assert compressed == 2 and kept < (0.355 + hot * 8 / row) * whole
    assert stats["fetched_rows"] > before["fetched_rows"] and settled(server)["integrity"] == "ok"
    assert result.score.right == result.score.total == 16, result.to_json()


@pytest.mark.server("usual")
def test_long_questions_are_answered_from_compressed_heads(server: Server, language: Language) -> None:
    before = server.stats()
    result = evaluate(server.url, language, 4096, documents=1, turns=3, names=8, seed=21)
    stats = server.stats()
    assert stats["compressed_requests"] - before["compressed_requests"] == 3
    assert stats["drift_checks"] > before["drift_checks"]
    assert result.score.right >= 23 and result.score.total == 24, result.to_json()
