"""What is told of early exit: counters for /metrics, and for /hetero/stats."""

from __future__ import annotations

from typing import Any

from hetero_sglang.sglang.early_exit.passes import EarlyExit
from hetero_sglang.sglang.metrics import COUNTER, GAUGE, Metric

METRICS = (
    Metric(
        "exits_total",
        COUNTER,
        "Decoded tokens that left before the last layer, by the layer of the branch that was sure.",
        lambda now: {str(layer): count for layer, count in now.exits.items()},
        "layer",
    ),
    Metric("exit_tokens_total", COUNTER, "Decoded tokens of models with branches.", lambda now: now.tokens),
    Metric("exit_layers_total", COUNTER, "Layers run for them in their own steps.", lambda now: now.layers),
    Metric("exit_mean_depth", GAUGE, "Layers run for a token in its own step, on average.", lambda now: now.depth),
    Metric(
        "exits_compared_total",
        COUNTER,
        "Tokens that a branch was sure of and that ran on, to be compared with full depth: of one exit in a hundred.",
        lambda now: now.compared,
    ),
    Metric(
        "exits_agreed_total", COUNTER, "Compared tokens whose first choice full depth had too.", lambda now: now.agreed
    ),
)


def stats(state: EarlyExit) -> dict[str, Any]:
    """Of a rank, for /hetero/stats."""
    counts = state.counts
    return {
        "exits": {str(layer): count for layer, count in counts.exits.items()},
        "tokens": counts.tokens,
        "layers_run": counts.layers,
        "mean_depth": round(counts.depth, 4),
        "layers": state.exits.layers,
        "compared": counts.compared,
        "agreed": counts.agreed,
        "waiting": state.waiting.count * len(state.waiting.requests),
        "thresholds": list(state.thresholds),
    }
