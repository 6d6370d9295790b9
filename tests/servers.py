"""The real servers that tests share: a table of their flags, and those of them that run now.

A start is half a minute of imports, so each is started once for all tests of a run that want it.
"""

from __future__ import annotations

import pkgutil
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tiny_adapters import lora_paths, lora_profile
from tiny_exits import exits_file, lens_file
from waiting import wait_for

from benchmarks.launch import Server
from hetero_sglang.cpu.platform import ENGINE_VARIABLE
from hetero_sglang.policy.registry import POLICIES
from hetero_sglang.sglang.version import release

MOST = 3  # at a time: each holds 2.6 GB
START_S = 900.0  # from its launch, on a busy machine, while tests run that want none
RATIO = 0.5
# The widest unit of an index is 32 tokens; a head that keeps 13/32 of 128 rows has room for them and the sinks.
POLICY_ROOM = {"max_total_tokens": 8000, "hetero_window": 32, "hetero_dense_below": 128}
DRAFTS = {"kv_policy": "heterocache", "speculative_algorithm": "NGRAM", "speculative_num_draft_tokens": 8}
EXITS: dict[str, Any] = {
    "hetero_early_exit": exits_file,
    "hetero_exit_agreement": 0.9,
    "env": {"HETERO_DEVELOPMENT": "1", "HETERO_FORCED_EXITS": "0.5"},
}
PRECISE: dict[str, Any] = {
    "kv_policy": "heterocache",
    "hetero_keep_ratio": 0.4,
    "hetero_dense_below": 1024,
    "dtype": "float32",
    "max_total_tokens": 14000,
}
PRECISE_DRAFTS = {**DRAFTS, **PRECISE}
PAGED = {"page_size": 16, "chunked_prefill_size": 512}
TIERED_EXITS: dict[str, Any] = {
    **EXITS,
    **PAGED,
    "kv_policy": "heterocache",
    "dtype": "float32",
    "hetero_keep_ratio": 0.6,
    "hetero_window": 16,
    "hetero_dense_below": 512,
    "max_total_tokens": 6000,
    "env": {**EXITS["env"], "SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "7"},
}
PARTS_EXITS = {**TIERED_EXITS, "env": {**TIERED_EXITS["env"], "HETERO_PARTS": "1"}}
# Two ranks that draw for themselves: a batch leaves where both have drawn so.
RANKS: dict[str, Any] = {"tp_size": 2, "enable_metrics": True, "enable_metrics_for_all_schedulers": True}
FORCED_RANKS = {"HETERO_FORCED_EXITS": "0.7"}
FEW = {"max_total_tokens": 3200, "disable_radix_cache": True, "enable_priority_scheduling": True}
ALIKE = [name for name, policy in POLICIES.items() if not policy.roles]

# Name -> arguments of benchmarks.launch.Server, or what makes one. Tests run in this order.
TABLE: dict[str, dict[str, Any]] = {
    "usual": {"kv_policy": "heterocache", "hetero_index": "none", "max_total_tokens": 60000, "enable_metrics": True},
    # Heads that find their rows by the key index of the shipped profile, and calls of tools for clients that read them.
    "indexed": {
        "kv_policy": "heterocache",
        "hetero_index": "directions",
        "hetero_keep_ratio": 0.3,
        "max_total_tokens": 30000,
        "tool_call_parser": "qwen25",
    },
    # Keys and values in 8 bits, in both tiers.
    "eight-bits": {
        "kv_policy": "heterocache",
        "kv_cache_dtype": "fp8_e4m3",
        "hetero_index": "directions",
        "hetero_keep_ratio": 0.35,
        "max_total_tokens": 30000,
    },
    # Little room, and every few steps a forced retraction.
    "small": {
        **PAGED,
        "kv_policy": "heterocache",
        "max_total_tokens": 6000,
        "hetero_keep_ratio": 0.6,
        "hetero_window": 16,
        "hetero_dense_below": 512,
        "env": {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "7"},
    },
    # Draft tokens, of adapters too: in full precision, where answers do not hang on how many tokens are computed at
    # once.
    "drafts": {**PRECISE_DRAFTS, "lora_paths": lora_paths},
    "plain-precise": {"kv_policy": "full", "dtype": "float32", "max_total_tokens": 14000, "lora_paths": lora_paths},
    # Two adapters beside the model: every row kept, in full precision; by key index, and by pivots with a profile for
    # one of them, little room and forced retractions.
    "lora-whole": {
        "kv_policy": "heterocache",
        "lora_paths": lora_paths,
        "dtype": "float32",
        "hetero_dense_below": 8200,
        "max_total_tokens": 30000,
    },
    "lora": {
        "kv_policy": "heterocache",
        "lora_paths": lora_paths,
        "hetero_index": "directions",
        "hetero_keep_ratio": 0.3,
        "max_total_tokens": 30000,
    },
    "lora-profile": {
        **PAGED,
        "kv_policy": "heterocache",
        "lora_paths": lora_paths,
        "hetero_lora_profile": lora_profile,
        "hetero_index": "none",
        "max_total_tokens": 6000,
        "hetero_keep_ratio": 0.6,
        "hetero_window": 16,
        "hetero_dense_below": 512,
        "env": {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "7"},
    },
    # The same drafts of two ranks, retracted by force.
    "drafts-ranks": {
        **PRECISE_DRAFTS,
        **RANKS,
        "hetero_keep_ratio": 0.7,
        "env": {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "7"},
    },
    # Drafts of a branch of the model's own.
    "drafts-self": {**PRECISE, "hetero_early_exit": lens_file, "hetero_self_draft": True},
    "drafts-self-ranks": {**PRECISE, **RANKS, "hetero_early_exit": lens_file, "hetero_self_draft": True},
    # Tokens that leave early by lot, of adapters too: of SGLang's cache; in little room, in pages, retracted by force.
    "exits": {
        **EXITS,
        "kv_policy": "full",
        "lora_paths": lora_paths,
        "dtype": "float32",
        "max_total_tokens": 14000,
        "enable_metrics": True,
    },
    "exits-tiered": {**TIERED_EXITS, "lora_paths": lora_paths},
    # Without adapters in parts, as a GPU runs them; on two ranks too, and of SGLang's cache where nobody waits.
    "exits-parts": PARTS_EXITS,
    "exits-ranks": {**PARTS_EXITS, **RANKS, "env": {**PARTS_EXITS["env"], **FORCED_RANKS}},
    "exits-ranks-copied": {
        **EXITS,
        **RANKS,
        "kv_policy": "full",
        "hetero_exit_kv": "copied",
        "dtype": "float32",
        "max_total_tokens": 14000,
        "env": {**EXITS["env"], **FORCED_RANKS, "HETERO_PARTS": "1"},
    },
    # Drafts with little room, in pages, retracted by force.
    "drafts-small": {
        **DRAFTS,
        **PAGED,
        "hetero_keep_ratio": 0.6,
        "hetero_window": 16,
        "hetero_dense_below": 512,
        "max_total_tokens": 6000,
        "speculative_ngram_max_bfs_breadth": 1,  # SGLang has no trees in pages on a CPU
        "env": {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "7"},
    },
    # SGLang's own, in pages, too few of them for several requests at once, and where no compiler is found; beside it
    # one with as many slots, so that both evict the same prefixes.
    "plain-paged": {**PAGED, "max_total_tokens": 3200, "env": {"CXX": "/no/compiler"}},
    "whole-paged": {**PAGED, "kv_policy": "heterocache", "hetero_keep_ratio": 1.0, "max_total_tokens": 3200},
    # The same without pages. Requests of up to 7000 tokens stay whole; the next thousand should, but find no room.
    "plain": {"kv_policy": "full", "max_total_tokens": 60000, "enable_return_hidden_states": True},
    "short-whole": {
        "enable_return_hidden_states": True,
        "kv_policy": "heterocache",
        "hetero_index": "none",
        "hetero_keep_ratio": RATIO,
        "hetero_dense_below": 8200,
        "max_total_tokens": 60000,
    },
    "quest-whole": {"kv_policy": "quest", "hetero_keep_ratio": 1.0, **POLICY_ROOM},
    **{name: {"kv_policy": name, "hetero_keep_ratio": RATIO, **POLICY_ROOM} for name in ALIKE},
    # Everything heterocache alone can do.
    "roles": {
        "kv_policy": "heterocache",
        "hetero_keep_ratio": RATIO,
        "hetero_roles": "ratio",
        "hetero_index": "none",
        "hetero_reassign": True,
        "hetero_window": 16,
        "max_total_tokens": 8000,
    },
    # Hot pages for a few requests at once, more request slots than that, and requests that outrank others.
    "tight": {
        "kv_policy": "heterocache",
        "hetero_keep_ratio": 0.75,
        "hetero_dense_below": 8192,
        "max_total_tokens": 7200,
        "page_size": 16,
        "enable_priority_scheduling": True,
    },
    # Prompts as embeddings, which are for servers without a cache of prefixes; room for a few of them.
    "plain-few": {"kv_policy": "full", **FEW},
    "few": {"kv_policy": "heterocache", "hetero_keep_ratio": 0.75, "hetero_dense_below": 3000, **FEW},
    # Chunks, forced retractions, and on each rank other heads with other hot pages.
    "two-ranks": {
        "config": Path(__file__).parent / "server" / "two-ranks.yaml",
        "chunked_prefill_size": 128,
        "env": {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "7"},
    },
}
# SGLang imports all its models at start, a tenth of a start's time, and the table's servers are of one.
_MODELS = find_spec("sglang.srt.models")
assert _MODELS is not None
UNUSED = ",".join(
    each.name
    for each in pkgutil.iter_modules(_MODELS.submodule_search_locations)
    if each.name not in ("llama", "utils")
)
# Those that another SGLang than 0.5.17 refuses, and why.
_REFUSED = {
    **{name: "drafts are not verified" for name in TABLE if name.startswith("drafts")},
    **{name: "no token leaves early" for name in TABLE if name.startswith("exits")},
    "eight-bits": "a CPU keeps no keys and values in 8 bits",
}
REFUSED = {} if release() == "0.5.17" else {name: f"{why} with SGLang {release()}" for name, why in _REFUSED.items()}
# without a policy, and statistics of one
PLAIN = ("plain-paged", "plain", "plain-precise", "exits", "exits-ranks-copied", "plain-few")


class Servers:
    """Those that run now, by their names in the table.

    `uses` counts the tests still to come that want a server; it ends with the last of them.
    """

    def __init__(self, uses: Counter[str]) -> None:
        self._uses = uses
        self._live: dict[str, Server] = {}  # the longest unused first
        self._failed: dict[str, RuntimeError] = {}

    def launch(self, name: str) -> None:
        """Start one in the background, if it does not run; the longest unused makes room."""
        if name in self._live or name in self._failed:
            return
        while len(self._live) >= MOST:
            self._stop(next(iter(self._live)))
        server = Server(**{flag: value() if callable(value) else value for flag, value in TABLE[name].items()})
        server.env["SGLANG_DISABLED_MODEL_ARCHS"] = UNUSED
        server.env.pop(ENGINE_VARIABLE, None)  # set here once this process has imported sglang
        server.launch()
        self._live[name] = server

    def get(self, name: str) -> Server:
        """One that answers, with an empty radix cache.

        RuntimeError when it does not start, and at once when it did not before.
        """
        if name in self._live and not self._live[name].alive:
            self._stop(name)  # what ended it has been told; those who come now get a new one
        self.launch(name)
        if name in self._failed:
            raise self._failed[name]
        server = self._live[name] = self._live.pop(name)
        if not server.started_in:
            try:
                server.wait(START_S)
            except RuntimeError as error:
                self._failed[name] = error
                self._stop(name)
                raise
        server.flush()  # also of what the start left, by which answers differ in their last bits
        return server

    def check(self, name: str) -> None:
        """AssertionError unless it still runs and its caches have lost nothing, on no rank."""
        server = self._live[name]
        assert server.alive, f"the test ended its server:\n{server.tail()}"
        if name in PLAIN:
            return
        wait_for(lambda: server.stats()["integrity_current"], "something still runs: nothing was checked")
        integrity = server.stats()["integrity"]
        assert integrity == "ok", integrity

    def used(self, name: str) -> None:
        """A test that wanted it is over."""
        self._uses[name] -= 1
        if not self._uses[name]:
            self._stop(name)

    def close(self) -> None:
        for name in list(self._live):
            self._stop(name)

    def _stop(self, name: str) -> None:
        if server := self._live.pop(name, None):
            server.stop(at_once=True)
