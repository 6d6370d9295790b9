"""What runs at this moment, for whoever watches: made when it is asked for, of what the host knows."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.config.layout import over_ranks
from hetero_sglang.sglang.metrics import Reading
from hetero_sglang.sglang.replies import facts

if TYPE_CHECKING:
    from hetero_sglang.sglang.runtime import Runtime

KEY = "hetero_present"  # in SGLang's internal state
MOST = 64  # requests that are told one by one, the oldest


def present(state: "Runtime") -> dict[str, Any]:
    """Tiers, queues, and the requests by number; nothing of what they say. Waits for nothing."""
    now, numbered = Reading(state), sorted(state.cache.requests.items(), key=lambda item: item[1].tally.number)
    slots = [slot for slot, _ in numbered]
    lengths = np.array([ws.length for _, ws in numbered], dtype=np.int64)
    caps = [state.cache.admission.accounts[slot].rows.caps for slot in slots]  # of all ranks' heads
    held = np.minimum(np.stack(caps), lengths[:, None]) if caps else np.zeros((0, 0), dtype=np.int64)
    return {
        "policy": state.policy,
        "clock": time.monotonic(),
        "running": len(slots),
        "waiting": len(state.scheduler.waiting_queue),
        "running_requests": [
            {
                "number": ws.tally.number,
                "tokens": ws.length,
                "prompt": ws.prompt,
                **facts(ws, state.cache.admission.accounts[slot], state.came(ws), ws.length),
            }
            for slot, ws in numbered[:MOST]
        ],
        "head_shares": head_shares(state, held.sum(0), int(lengths.sum())) if lengths.any() else None,
        "head_fetches": head_fetches(state, [ws for _, ws in numbered]),
        "tiers": {name: asdict(tier) for name, tier in now.tiers.items()},
        "hot_page_states": now.hot_pages,
    }


def head_fetches(state: "Runtime", live: Sequence[WorkingSet]) -> list[list[float]] | None:
    """By layer and KV head of this rank, the rows that came for each token that `live` requests have
    generated or appended; None where they have none yet."""
    tokens = sum(max(0, ws.length - ws.prompt) + ws.tally.appended_tokens for ws in live)
    if not tokens:
        return None
    came = sum(state.came(ws)[0].numpy().astype(np.int64) for ws in live)  # [Hc]
    layers = state.settings.layout.layers
    fetches = np.zeros((len(layers), len(layers[0].resident) + len(layers[0].compressed)))
    for index, layer in enumerate(layers):
        fetches[index, list(layer.compressed)] = came[layer.first : layer.first + len(layer.compressed)] / tokens
    return fetches.round(2).tolist()


def head_shares(state: "Runtime", held: np.ndarray, tokens: int) -> list[list[float]]:
    """By layer and KV head, the share of the `tokens` of live requests whose rows are on the device; `held`: rows of
    the compressed heads of all ranks in turn."""
    ranks, heads = state.settings.ranks, state.scheduler.model_config.get_total_num_kv_heads()
    ends = np.cumsum([rank.num_compressed for rank in ranks])[:-1]
    return over_ranks(ranks, heads, np.split(held / tokens, ends)).round(3).tolist()
