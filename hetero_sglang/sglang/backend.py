"""SGLang's attention backend over the two tiers (layers/attention/base_attn_backend.py)."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import RadixAttention

from hetero_sglang.engine.engine import Engine
from hetero_sglang.engine.late import Begun
from hetero_sglang.engine.plan import plan_extend
from hetero_sglang.engine.verify import Verification
from hetero_sglang.ops.base import StepTables
from hetero_sglang.ops.step import DecodeStep
from hetero_sglang.sglang.drafts import trees
from hetero_sglang.sglang.pool import token_slots
from hetero_sglang.sglang.runtime import runtime


class HeteroAttnBackend(AttentionBackend):
    """The same on every device. Batches SGLang makes up to warm kernels attend to themselves."""

    def __init__(self, model_runner: Any) -> None:
        super().__init__()
        self.device = model_runner.device
        self.req_to_token_pool = model_runner.req_to_token_pool
        self.token_to_kv_pool = model_runner.token_to_kv_pool
        self.cache = self.token_to_kv_pool.cache
        table = self.req_to_token_pool.req_to_token  # [requests, context]
        heads = model_runner.model_config.num_attention_heads // runtime().size
        self.units = units_of(model_runner.model, self.cache.hot.k.dtype)
        if self.cache.index is not None:
            self.cache.index.measure([k for k, _ in self.units])
        self.engine = Engine(self.cache, table.shape[0], table.shape[1], heads, dtype=model_runner.dtype)
        self.step: DecodeStep | None = None
        self.tables: StepTables | None = None
        self.verification: Verification | None = None
        self.turns: list[tuple[DecodeStep, StepTables]] = []  # of tokens that pass a layer together (early_exit)
        self.parts: int | None = None  # width of the step that comes, where its layers are graphs in parts
        self.known = True  # this prefill's requests are the cache's
        runtime().engine = self.engine

    # ---- the contract's five methods

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Buffers for graphs of up to `max_bs` requests."""
        self.engine.graph_step = step = self.engine.make_step(max_bs, self.engine.context, fixed=True)
        if max_num_tokens > max_bs:
            drafts = max_num_tokens // max_bs - 1
            self.engine.graph_verification = self.engine.make_verification(step, drafts)

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        return 1

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """Between two steps: what the next one reads is filled in, and what was ranked since the last one comes."""
        mode = forward_batch.forward_mode
        if not mode.is_decode_or_idle() and not mode.is_target_verify():
            self._begin_extend(forward_batch)
            return
        width = forward_batch.batch_size
        requests = [] if in_capture else runtime().batch[:width]
        if not all(slot in self.cache.requests for slot in requests):  # SGLang's own, to warm its kernels
            requests = []
        lengths = forward_batch.seq_lens_cpu[: len(requests)].tolist() if requests else []
        in_graph = in_capture or isinstance(forward_batch, SimpleNamespace)
        if mode.is_target_verify():
            self._begin_verify(forward_batch, requests, lengths, in_graph)
            return
        if in_graph or self.parts:
            self.step = self.engine.graph_step
        else:
            self.step = self.engine.eager(width, max(lengths, default=1))
        assert self.step is not None  # SGLang has made its graphs' buffers
        width = self.parts or width
        self.engine.begin_decode(self.step, requests, lengths, width, self.req_to_token_pool.req_to_token)

    def _begin_verify(self, forward_batch: Any, requests: list[int], lengths: list[int], in_graph: bool) -> None:
        spec, engine, count = forward_batch.spec_info, self.engine, len(requests)
        if in_graph:
            made = engine.graph_verification
        else:
            made = engine.eager_verify(forward_batch.batch_size, max(lengths, default=1) + 1, spec.draft_token_num - 1)
        assert made is not None  # SGLang has made its graphs' buffers
        slots = token_slots(forward_batch.out_cache_loc)[: count * spec.draft_token_num]
        tree = trees(spec.custom_mask, lengths, spec.draft_token_num)
        table = self.req_to_token_pool.req_to_token
        engine.begin_verify(made, requests, lengths, forward_batch.batch_size, table, slots, tree)
        self.verification = made

    def init_forward_metadata_in_graph(self, forward_batch: Any) -> None:
        """Recorded: every replay plans its own work on the device."""
        if forward_batch.forward_mode.is_target_verify():
            assert self.verification is not None
            self.verification.plan(forward_batch.batch_size)
        if forward_batch.forward_mode.is_decode_or_idle() and not self.parts:
            assert self.step is not None
            self.tables = self.step.plan(forward_batch.batch_size)

    def _begin_extend(self, forward_batch: Any) -> None:
        requests = runtime().batch[: forward_batch.batch_size]
        self.known = bool(requests) and all(slot in self.cache.requests for slot in requests)
        counts, lengths = forward_batch.extend_seq_lens_cpu, forward_batch.seq_lens_cpu.tolist()
        if not self.known:
            self.engine.begin_unknown(list(counts))
            return
        prompts = plan_extend(self.cache, requests, lengths, list(counts), self.req_to_token_pool.req_to_token)
        self.engine.begin_extend(prompts)

    # ---- per layer

    def forward_extend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: Any, forward_batch: Any,
        save_kv_cache: bool = True, **kwargs: Any,
    ) -> torch.Tensor:  # fmt: skip
        """q [n, Hq * D], k [n, H, D], v [n, H, Dv] -> [n, Hq * Dv]."""
        index, q, k, v = self._split(q, k, v, layer)
        slots = token_slots(forward_batch.out_cache_loc)
        if forward_batch.forward_mode.is_target_verify():
            assert self.verification is not None
            return self._out(index, self.engine.verify(index, self.verification, slots, q, k, v, layer.scaling))
        return self._out(index, self.engine.extend(index, slots, q, k, v, layer.scaling))

    def forward_decode(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: Any, forward_batch: Any,
        save_kv_cache: bool = True, **kwargs: Any,
    ) -> torch.Tensor:  # fmt: skip
        """q [B, Hq * D], k [B, H, D], v [B, H, Dv] -> [B, Hq * Dv]."""
        index, q, k, v = self._split(q, k, v, layer)
        slots = token_slots(forward_batch.out_cache_loc)
        if self.turns:
            return self._out(index, self.engine.decode_turns(index, self.turns, slots, q, k, v, layer.scaling))
        assert self.step is not None and self.tables is not None
        return self._out(index, self.engine.decode(index, self.step, self.tables, slots, q, k, v, layer.scaling))

    # ---- tokens that leave early

    def begin_turns(self, rows: Sequence[int], late: Sequence[Begun], ahead: bool) -> None:
        """Before layers run for earlier steps of the requests in these rows of the batch, and, unless `ahead`, for the
        one that has begun."""
        requests = [runtime().batch[row] for row in rows]
        self.turns = self.engine.late.begin(requests, late, self.req_to_token_pool.req_to_token)
        if not ahead:
            assert self.step is not None and self.tables is not None
            self.turns.append((self.step, self.tables))

    def end_turns(self) -> None:
        """After layers have run for them, or for the step alone; others may follow."""
        self.turns = []
        self.engine.settle()

    def guess(self, lengths: Sequence[int], drafts: int) -> Verification:
        """As of Engine.guess, for the batch's requests."""
        return self.engine.guess(runtime().batch, list(lengths), drafts, self.req_to_token_pool.req_to_token)

    def attend_guessed(
        self, made: Verification, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: Any
    ) -> torch.Tensor:
        """Of all guessed tokens of each request in turn: as `forward_decode`."""
        index, q, k, v = self._split(q, k, v, layer)
        q, k, v = (each.unflatten(0, (-1, made.each)) for each in (q, k, v))
        return self._out(index, made.attend(index, q, k, v, layer.scaling).flatten(0, 1))

    def step_left(self, copied: bool) -> None:
        """Tokens of the step that has begun have left before their last layers, where they are `copied` or missing."""
        assert self.step is not None
        self.engine.left(self.step, copied)

    def through(self) -> None:
        """All turns of this pass are through their last layers."""
        for late in (self.engine.late, self.engine.graph_late):
            late.through()

    def fix_turns(self, late: int, width: int) -> None:
        """Buffers for graphs of up to so many earlier steps of up to `width` requests."""
        self.engine.graph_late.grow(late, width, self.engine.context)

    def fill_turns(self, late: Sequence[Begun | None], width: int) -> None:
        """Before a graph with these steps is made or replayed; the batch's requests are theirs."""
        table = self.req_to_token_pool.req_to_token
        self.prepare(width)
        self.engine.graph_late.fill(runtime().batch, late, width, table)

    def prepare(self, width: int) -> None:
        """What a kernel needs on the host, once for a width, before graphs' step is planned for it."""
        step = self.engine.graph_step
        assert step is not None
        step.kernel.prepare(width)

    def plan_turns(self, late: int, width: int, begins: bool) -> None:
        """Recorded: what these steps and the one that has begun read, which plans itself where it `begins`."""
        self.step = step = self.engine.graph_step
        assert step is not None
        self.tables = step.plan(width) if begins else step.tables_of(width)
        turns = self.engine.graph_late.plan(late, width)
        self.turns = [*turns, (step, self.tables)] if turns else []

    def store(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: Any, forward_batch: Any) -> None:
        """Keys and values of the step's tokens, which do not attend in this layer: as of `forward_decode`."""
        assert self.tables is not None
        index, _, k, v = self._split(q, k, v, layer)
        self.engine.store(index, self.tables, token_slots(forward_batch.out_cache_loc), k, v)

    def _split(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: Any
    ) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]:
        q = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        k = k.reshape(-1, layer.tp_k_head_num, layer.qk_head_dim)
        v = v.reshape(-1, layer.tp_v_head_num, layer.v_head_dim)
        index = layer.layer_id - self.token_to_kv_pool.start_layer
        key, value = self.units[index]
        if key != 1:
            q, k = q * key, k / key
        return index, q, k, v / value if value != 1 else v

    def _out(self, index: int, out: torch.Tensor) -> torch.Tensor:
        """[n, Hq, Dv] of a layer, as SGLang takes it."""
        value = self.units[index][1]
        return (out * value if value != 1 else out).flatten(1)

    def support_triton(self) -> bool:
        return self.device != "cpu"


def units_of(model: torch.nn.Module, stored: torch.dtype) -> list[tuple[float, float]]:
    """By layer, what a key and a value are divided by before they are kept, which a checkpoint may say for stores of 8
    bits (BaseKVCacheMethod): elsewhere 1."""
    layers = sorted((m for m in model.modules() if isinstance(m, RadixAttention)), key=lambda layer: layer.layer_id)
    said = [(layer.k_scale_float or 1.0, layer.v_scale_float or 1.0) for layer in layers]
    return said if stored.itemsize == 1 else [(1.0, 1.0)] * len(said)


def build_backend(
    original: Callable[..., Any], *, model_runner: Any, backend_str: str, init_new_workspace: bool
) -> Any:
    """AROUND attention_backend_setup._build_full_attention_backend_from_str."""
    model_runner.init_new_workspace = init_new_workspace
    return HeteroAttnBackend(model_runner)
