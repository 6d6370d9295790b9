"""Where every row is kept, not one token differs from plain SGLang; where not, recall holds."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.identity import compare
from benchmarks.launch import Server
from benchmarks.recall import Language, evaluate

pytestmark = pytest.mark.server


@pytest.mark.parametrize(
    ("flags", "ours", "limit"),
    [
        ({"page_size": 16, "chunked_prefill_size": 512}, {"hetero_keep_ratio": 1.0}, 3000),
        ({"page_size": 1}, {"hetero_keep_ratio": 0.5, "hetero_dense_below": 3000}, 2900),
    ],
)
def test_greedy_tokens_equal_plain_sglang(
    language: Language, flags: dict[str, Any], ours: dict[str, Any], limit: int
) -> None:
    got = compare(language, 24, limit, 3, None, flags, ours)
    assert got["different"] == []
    assert got["compressed"] == 0 and got["integrity"] == "ok"


def test_long_questions_are_answered_from_compressed_heads(server: Server, language: Language) -> None:
    before = server.stats()
    result = evaluate(server.url, language, 4096, documents=1, turns=3, names=8, seed=21)
    stats = server.stats()
    assert stats["compressed_requests"] - before["compressed_requests"] == 3
    assert stats["drift_checks"] > before["drift_checks"]
    assert result.score.right >= 23 and result.score.total == 24, result.to_json()
