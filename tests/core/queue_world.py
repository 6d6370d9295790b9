"""SGLang's own admission code over a small world: real passes over the queue and our hooks, without model or tokens.

`World` is one rank's scheduler. `Scheduler._get_new_batch_prefill_raw` and `PrefillAdder` are SGLang's, hooked as a
server hooks them; batches, the radix tree (which here takes no slots) and the token allocator are stand-ins that count,
with what any of the tested versions reads of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.managers import schedule_policy
from sglang.srt.managers import scheduler as scheduler_module
from sglang.srt.managers.schedule_policy import PrefillAdder
from sglang.srt.managers.scheduler import Scheduler

from hetero_sglang.cache.counters import Counters
from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.resident_store import ResidentStore
from hetero_sglang.cache.sizes import Shape, Sizes
from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.config.settings import Settings
from hetero_sglang.sglang import admit, lifecycle, runtime

SHAPE = Shape(4, 4, 2)
ADAPTERS = ("a", "b")
CLIP = schedule_policy.CLIP_MAX_NEW_TOKENS


class Held:
    """What a request holds, as its `kv` says it from SGLang 0.5.23 on."""

    holds_mamba, mamba_pool_idx, mamba_cow_src_index, kv_committed_len = False, None, None, 0

    def __init__(self) -> None:
        self.req_pool_idx: int | None = None

    @property
    def holds_kv(self) -> bool:
        return self.req_pool_idx is not None


class Req:
    """What admission reads of SGLang's Req."""

    finished_reason = cache_salt = beam_group = token_indices_to_pool = cache_request_handle = None
    swa_host_hit_length = mamba_host_hit_length = auxiliary_swa_host_hit_length = storage_hit_length = 0
    host_loaded_length = storage_hit_start = 0
    host_hit_is_storage = False
    return_logprob = return_hidden_states = skip_radix_cache_insert = False
    logprob_start_len, input_embeds, positional_embed_overrides = -1, None, None

    def __init__(
        self, number: int, prompt: int | list[int], max_new: int, priority: int, adapter: str | None = None
    ) -> None:
        """`prompt`: its tokens, or how many it has that no other request has; `adapter`: the id of its own."""
        self.extra_key = self.lora_id = adapter
        self.rid, self.priority = number, priority
        self.origin_input_ids = [-1 - number] * prompt if isinstance(prompt, int) else prompt
        self.output_ids: list[int] = []
        self.sampling_params = SimpleNamespace(max_new_tokens=max_new, ignore_eos=False)
        self.time_stats = SimpleNamespace(wait_queue_entry_time=number)
        self.kv = Held()
        self.to_finish = self.last_node = self.mamba_pool_idx = self.mamba_cow_src_index = None
        self.host_hit_length = self.inflight_middle_chunks = self.kv_committed_len = 0
        self.retracted_stain = self.done = False
        self.held = self.cached = 0  # token slots, and the radix tree's before them
        self.init_next_round_input()

    def init_next_round_input(self, tree: Any = None) -> None:
        ids = self.full_untruncated_fill_ids = self.origin_input_ids + self.output_ids
        if tree is not None and self.req_pool_idx is None:
            most = lifecycle.leave_observed_queries(len(ids) - 1, self, len(ids))
            self.cached = tree.common(ids, most, self.extra_key)

    @property
    def req_pool_idx(self) -> int | None:
        return self.kv.req_pool_idx

    @req_pool_idx.setter
    def req_pool_idx(self, slot: int | None) -> None:
        self.kv.req_pool_idx = slot

    @property
    def prefix_len(self) -> int:
        return self.cached + self.held  # `held` of a prompt that comes in chunks

    @property
    def prefix_indices(self) -> torch.Tensor:
        return torch.arange(self.prefix_len)

    @property
    def extend_len(self) -> int:
        return self.extend_end - self.prefix_len

    def effective_kv_committed_len(self) -> int:
        return len(self.origin_input_ids) + len(self.output_ids) - 1

    owned_kv_len = effective_kv_committed_len

    def set_extend_range(self, start: int, end: int) -> None:
        self.extend_range, self.extend_end = SimpleNamespace(start=start, end=end, length=end - start), end

    def materialized_host_hit_len(self) -> int:
        return 0

    def fulfilled_storage_hit_len(self, prefix: int) -> int:
        return 0

    def needs_host_load_back(self) -> bool:
        return False

    def finished(self) -> bool:
        return self.done


class Tree:
    """The tokens of the latest requests that have ended, in slots of nobody, and their adapters."""

    disable, buffer_pipeline, storage_prefetch_retries = False, None, None

    def __init__(self) -> None:
        self.known: deque[tuple[np.ndarray, str | None]] = deque(maxlen=8)

    def common(self, ids: list[int], most: int, key: str | None) -> int:
        """How many of `ids`, of the first `most`, a request of this key that has ended begins with too."""
        mine, best = np.array(ids[:most]), 0
        for other in (ids for ids, salt in self.known if salt == key):
            count = min(len(mine), len(other))
            differ = np.flatnonzero(mine[:count] != other[:count])
            best = max(best, int(differ[0]) if differ.size else count)
        return best

    def match_prefix(self, params: Any) -> Any:
        key = params.key
        found = self.common(key.token_ids, key.limit, key.extra_key)
        return SimpleNamespace(device_indices=torch.empty(found), device_prefix_len=found)

    def evictable_size(self) -> int:
        return 0

    def supports_mamba(self) -> bool:
        return False

    def is_tree_cache(self) -> bool:
        return False

    def inc_lock_ref(self, node: Any) -> None: ...

    def dec_lock_ref(self, node: Any) -> None: ...

    def lock(self, node: Any) -> None: ...

    def unlock(self, lock: Any) -> None: ...

    def supports_prefix_sharing(self) -> bool:
        return True

    def finish_storage_prefetch_admission(self, handle: Any, **counts: Any) -> None: ...

    def discard_storage_prefetch_accounting(self, handle: Any) -> None: ...


class Allocator:
    """So many token slots, none of them in particular."""

    page_size = 1

    def __init__(self, world: World) -> None:
        self.world = world

    def available_size(self) -> int:
        return self.world.available

    def create_prefill_budget(self, tree: Tree, *, num_mixed_decode_tokens: int) -> Any:
        from sglang.srt.mem_cache.prefill_budget import PrefillBudget

        return PrefillBudget(self, tree, num_mixed_decode_tokens=num_mixed_decode_tokens)

    def request_slot_reserve(self, **of: Any) -> int:
        return 0


class Batch:
    """Running requests, as SGLang's ScheduleBatch keeps them."""

    def __init__(self, world: World, reqs: list[Req]) -> None:
        self.world, self.reqs, self.batch_is_full = world, reqs, False
        self.return_logprob, self.input_embeds = False, None

    def batch_size(self) -> int:
        return len(self.reqs)

    def is_empty(self) -> bool:
        return not self.reqs

    def filter_batch(self, keep_indices: list[int] | None = None) -> None:
        keep = range(len(self.reqs)) if keep_indices is None else keep_indices
        self.reqs = [self.reqs[i] for i in keep if not self.reqs[i].done]

    def release_req(self, index: int, remaining: int, *server_args: Any) -> None:
        self.world.release(self.reqs[index])

    def prepare_for_extend(self) -> None:
        for req in self.reqs:
            if req.req_pool_idx is None:
                req.req_pool_idx = self.world.free_requests.pop(0)
            self.world.take(req, req.extend_len)
            turn = self.world.state.turns.get(req.rid)
            assert turn is None or turn.parked.salt == lifecycle.requests.salt(req), "a set of another adapter's"
        lifecycle.request_slots_given([r.req_pool_idx for r in self.reqs], None, self.reqs)


class Checked(TieredCache):
    """Whenever pages are about to be wanted, those that count as free are."""

    def _clear(self, pages: np.ndarray) -> None:
        free = int(self.admission.free[self.settings.rank])
        assert free == self.hot.available, f"{free} pages count as free, {self.hot.available} are"
        super()._clear(pages)


class World:
    """One rank. `slots` token slots, `requests` request slots; everything else as SGLang's scheduler has it."""

    is_hybrid_swa = enable_hierarchical_cache = is_mixed_chunk = enable_lora = enable_dynamic_chunking = False
    enable_hicache_storage = enable_overlap = enable_priority_scheduling = _engine_paused = False
    enable_lmcache = enable_unified_cache_external_linker = False
    hisparse_coordinator = dynamic_chunk_sizer = min_free_slots_delayer = dllm_config = truncation_align_size = (
        spec_algorithm
    ) = model_config = None
    page_size, max_prefill_tokens, max_prefill_bs, priority_scheduling_preemption_threshold = 1, 100_000, 0, 0
    processed_tokens_counter = 0
    disaggregation_mode = DisaggregationMode.NULL
    _get_new_batch_prefill_raw = Scheduler._get_new_batch_prefill_raw

    def __init__(self, settings: Settings, slots: int, requests: int, chunk: int | None, preemption: bool) -> None:
        self.settings = settings
        self.available, self.free_requests = slots, list(range(1, requests + 1))
        self.total = slots
        self.max_running_requests, self.chunked_prefill_size = requests, chunk
        self.enable_priority_preemption = preemption
        self.waiting_queue: list[Req] = []
        self.chunked_req: Req | None = None
        self.running_batch = Batch(self, [])
        self.last_batch: Batch | None = None
        self.schedule_low_priority_values_first = False
        self.server_args = SimpleNamespace(schedule_low_priority_values_first=False)
        self.grammar_manager = SimpleNamespace(has_waiting_grammars=lambda: False)
        self.new_token_ratio_tracker = SimpleNamespace(current=0.4)
        self.policy = SimpleNamespace(calc_priority=self._sort, shortest_prefill_chunk_limit=lambda *_: None)
        refs = {adapter: SimpleNamespace(lora_name=adapter) for adapter in ADAPTERS}
        runner = SimpleNamespace(
            prefill_aware_swa=False, attn_backend=None, lora_manager=SimpleNamespace(lora_refs=refs)
        )
        self.tp_worker = SimpleNamespace(model_runner=runner)
        self.load_inquirer = SimpleNamespace(_get_num_pending_tokens=lambda **_: 0)
        self.token_to_kv_pool_allocator = Allocator(self)
        self.tree_cache = Tree()
        self.req_to_token_pool = SimpleNamespace(available_size=lambda: len(self.free_requests))
        self.trace: list[Any] = []  # what was decided, pass by pass
        pages = [Sizes(SHAPE, layout, settings.rule.page_size, slots).hot_pages for layout in settings.ranks]
        self.state = runtime.Runtime(
            settings=settings,
            policy="heterocache",
            profile=None,
            profile_warning=None,
            host_bytes=None,
            context=slots,
            on_device=False,
            item=2,
            engine=SimpleNamespace(poll=lambda: None, check_integrity=lambda: None, stats=dict),
            scheduler=self,
            adapters=ADAPTERS[: len(settings.adapters)],
        )
        layers = settings.layout.layers
        resident = ResidentStore(1, [0] * len(layers), 4, 4, torch.bfloat16, "cpu")
        host = HostStore(1, [0] * len(layers), 4, 4, torch.bfloat16)
        hot = HotPool(pages[settings.rank], settings.rule.page_size, 4, 4, torch.bfloat16, "cpu")
        self.cache = self.state._cache = Checked(settings, resident, host, hot, Counters(), pages)

    # ---- what SGLang's pass calls

    def get_num_allocatable_reqs(self, running: int, beam: Any = None, num_held_rows: int = 0, **batch: Any) -> int:
        return min(self.max_running_requests - running, len(self.free_requests) + num_held_rows)

    def get_prefill_adder_class(self) -> type[PrefillAdder]:
        return HookedAdder

    def _add_request_to_queue(self, req: Req) -> None:
        self.waiting_queue.append(req)

    def _sort(self, queue: list[Req], running: Any, **more: Any) -> None:
        if self.enable_priority_preemption:
            queue.sort(key=lambda req: -req.priority)

    # ---- tokens and requests

    def take(self, req: Req, count: int) -> None:
        assert count <= self.available, "SGLang let in more tokens than there are"
        self.available -= count
        req.held += count

    def release(self, req: Req) -> None:
        """Its slots, its request slot and, by our hook, its hot pages are free again; it may come back."""
        if req.done:
            ids = np.array(req.full_untruncated_fill_ids[: req.effective_kv_committed_len()])
            self.tree_cache.known.append((ids, req.extra_key))
        self.available += req.held
        req.held = req.cached = 0

        def freed(pool: Any, req: Req) -> None:
            self.free_requests.append(req.req_pool_idx)
            req.req_pool_idx = None

        lifecycle.request_slot_freed(freed, None, req)

    # ---- events

    def step(self) -> None:
        """A prefill batch where somebody comes in, else a decode step of everybody who runs."""
        with acting(self):
            if self.last_batch is not None:
                self.last_batch.reqs = [r for r in self.last_batch.reqs if r is not self.chunked_req]
                if self.running_batch.is_empty():
                    self.running_batch = self.last_batch
                else:
                    self.running_batch.reqs += self.last_batch.reqs
            self.last_batch, before = None, len(self.running_batch.reqs)
            batch, self.running_batch = admit.choose_batch(
                type(self)._get_new_batch_prefill_raw, self, None, self.running_batch
            )
            if batch is not None:
                self.last_batch = batch
                self._produce([r for r in batch.reqs if r is not self.chunked_req])
            else:
                self._decode()
            if len(self.running_batch.reqs) < before:
                self.running_batch.batch_is_full = False
            self.trace.append(
                ([r.rid for r in batch.reqs] if batch else [], [r.rid for r in self.running_batch.reqs], self.available)
            )

    def _decode(self) -> None:
        running = self.running_batch
        running.filter_batch()
        while len(running.reqs) > self.available:  # SGLang retracts while the next step's tokens do not fit
            self.retract(len(running.reqs) - 1)
        for req in running.reqs:
            self.take(req, 1)
            length = len(req.origin_input_ids) + len(req.output_ids)
            self.cache.make_room(self.cache.requests[req.req_pool_idx], length)
        self._produce(running.reqs)
        running.filter_batch()

    def _produce(self, reqs: list[Req]) -> None:
        for req in reqs:
            self.cache.requests[req.req_pool_idx].length = len(req.origin_input_ids) + len(req.output_ids)
            req.output_ids.append(req.rid)
            req.full_untruncated_fill_ids = req.origin_input_ids + req.output_ids
            if len(req.output_ids) >= req.sampling_params.max_new_tokens:
                req.done = True
                self.release(req)

    def retract(self, index: int) -> None:
        """The running request of this index goes back to the queue."""
        req = self.running_batch.reqs.pop(index)
        with acting(self):
            self.release(req)
        req.retracted_stain = True
        self._add_request_to_queue(req)

    def pause(self) -> None:
        """`pause_generation` in mode retract: everybody goes back to the queue."""
        everybody = [r for r in self.running_batch.reqs if not r.done]
        everybody += [r for r in (self.last_batch.reqs if self.last_batch else []) if not r.done]
        if self.chunked_req is not None and self.chunked_req not in everybody:
            everybody.append(self.chunked_req)
        self.chunked_req = self.last_batch = None
        with acting(self):
            for req in everybody:
                self.release(req)
        self.running_batch.reqs = []
        self.running_batch.batch_is_full = False
        self.waiting_queue += everybody

    def abort(self, rid: int) -> None:
        """The request ends, wherever it is."""
        self.waiting_queue = [r for r in self.waiting_queue if r.rid != rid]
        for req in [*self.running_batch.reqs, *(self.last_batch.reqs if self.last_batch else [])]:
            if req.rid == rid and not req.done and req is not self.chunked_req:
                with acting(self):
                    self.release(req)
                req.done = True
        self.running_batch.filter_batch()
        if self.last_batch is not None:
            self.last_batch.filter_batch()

    @property
    def live(self) -> list[Req]:
        """Who has not been answered, wherever it is."""
        found = [*self.waiting_queue, *self.running_batch.reqs]
        found += self.last_batch.reqs if self.last_batch else []
        found += [self.chunked_req] if self.chunked_req else []
        return list({id(r): r for r in found if not r.done}.values())

    def check(self) -> None:
        """Nothing is lost: tokens, request slots, hot pages."""
        assert self.available + sum(r.held for r in self.live) == self.total
        self.cache.check_integrity()


@contextmanager
def acting(world: World) -> Iterator[None]:
    """The hooks belong to this rank."""
    before, runtime._runtime = runtime._runtime, world.state
    try:
        yield
    finally:
        runtime._runtime = before


class HookedAdder(PrefillAdder):
    """SGLang's, with our hooks around the two methods that a server hooks."""

    def add_one_req(self, req: Any, *args: Any, **kwargs: Any) -> Any:
        return admit.admit(PrefillAdder.add_one_req, self, req, *args, **kwargs)

    def preempt_to_schedule(self, req: Any, *server_args: Any) -> bool:
        return admit.preempt(PrefillAdder.preempt_to_schedule, self, req, *server_args)


@pytest.fixture(scope="module")
def sglang_world() -> Iterator[None]:
    """SGLang's pass, with what it would read of a server's global settings."""
    patch = pytest.MonkeyPatch()
    for name in ("is_dsa_prefill_cp_in_seq_split", "is_prefill_context_parallel_enabled"):
        patch.setattr(schedule_policy, name, lambda: False, raising=False)
    asked = SimpleNamespace(prefill_max_requests=None, schedule_low_priority_values_first=False, schedule_policy="fcfs")
    features = SimpleNamespace(enable_encoder_swa_bounded_replay=False)
    for module in (scheduler_module, schedule_policy):
        patch.setattr(module, "get_schedule", lambda: asked, raising=False)
        patch.setattr(module, "get_exec", lambda: SimpleNamespace(features=features), raising=False)
    patch.setattr(scheduler_module, "get_memory", lambda: SimpleNamespace(enable_flexkv=False))
    patch.setattr(scheduler_module, "PrefillAdder", HookedAdder)
    patch.setattr(scheduler_module, "set_time_batch", lambda *_: None)
    patch.setattr(scheduler_module, "PrefillStats", SimpleNamespace(from_adder=lambda *_, **__: None))
    made = SimpleNamespace(init_new=lambda reqs, pool, *_, **__: Batch(runtime.runtime().scheduler, reqs))
    patch.setattr(scheduler_module, "ScheduleBatch", made)
    yield
    patch.undo()
