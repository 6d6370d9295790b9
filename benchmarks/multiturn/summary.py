"""Numbers of a run, by the names that SGLang's bench_multiturn.py and bench_serving give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .drive import Turn


def summary(turns: Sequence[Turn], seconds: float, slo_ttft: float, slo_itl: float) -> dict[str, Any]:
    """Times in seconds, throughputs in a second of `seconds`. Goodput: answers whose first token came within
    `slo_ttft` and whose tokens after it came every `slo_itl` on the mean."""
    whole = [turn for turn in turns if turn.error is None and not turn.left]
    told = [turn for turn in whole if turn.cached_tokens is not None]
    good = [turn for turn in whole if turn.ttft is not None and turn.ttft <= slo_ttft and _mean(turn.itl) <= slo_itl]
    checked = [turn for turn in whole if turn.of]
    prompts, outputs = sum(turn.prompt_tokens for turn in whole), sum(turn.output_tokens for turn in whole)
    cached = sum(turn.cached_tokens or 0 for turn in told)
    return {
        "total_requests": len(whole),
        "failed": sum(turn.error is not None for turn in turns),
        "aborted": sum(turn.left for turn in turns),
        "duration": seconds,
        "request_throughput": len(whole) / seconds,
        "input_token_throughput": prompts / seconds,
        "output_token_throughput": outputs / seconds,
        "goodput": len(good) / seconds,
        "cache_hit_rate": cached / max(1, sum(turn.prompt_tokens for turn in told)) if told else None,
        "average_prompt_len": prompts / max(1, len(whole)),
        "average_output_len": outputs / max(1, len(whole)),
        **_spread("ttft", [turn.ttft for turn in whole if turn.ttft is not None]),
        **_spread("first_turn_ttft", [turn.ttft for turn in whole if turn.ttft is not None and not turn.round]),
        **_spread("later_turn_ttft", [turn.ttft for turn in whole if turn.ttft is not None and turn.round]),
        **_spread("short_chat_ttft", [turn.ttft for turn in whole if turn.ttft is not None and turn.document < 0]),
        **_spread("itl", [gap for turn in whole for gap in turn.itl]),
        **_spread("latency", [turn.latency for turn in whole]),
        "right": sum(turn.right or 0 for turn in checked) if checked else None,
        "right_of": sum(turn.of or 0 for turn in checked) if checked else None,
    }


def _spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    names = [f"{which}_{name}" for which in ("average", "median", "p90", "p99")]
    if not values:
        return dict.fromkeys(names)
    return dict(zip(names, map(float, (np.mean(values), *np.percentile(values, (50, 90, 99)))), strict=True))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def table(numbers: dict[str, Any]) -> str:
    """Lines as `bench_serving` prints them."""
    return "\n".join(f"{name.replace('_', ' '):<28}{_shown(value):>14}" for name, value in numbers.items())


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
