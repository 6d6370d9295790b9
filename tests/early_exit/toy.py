"""A model of a few layers in SGLang's shape, in float64, over a cache whose unwritten rows are NaN; and a scheduler's
part of a server around early exit."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardMode
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context, get_attn_backend

from hetero_sglang.cache.lanes import Recorder
from hetero_sglang.exits.branch import Branch
from hetero_sglang.exits.exits import Exits
from hetero_sglang.exits.operating_point import OperatingPoint
from hetero_sglang.sglang.early_exit import hooks
from hetero_sglang.sglang.early_exit.attention import Attention
from hetero_sglang.sglang.early_exit.passes import EarlyExit, Rules
from hetero_sglang.sglang.early_exit.plans import Plan
from hetero_sglang.sglang.early_exit.recording import AHEAD, recorded
from hetero_sglang.sglang.early_exit.turn import Turn

LAYERS, WIDTH, WORDS, SLOTS, REQUESTS, CONTEXT = 5, 8, 23, 400, 12, 96
KINDS = torch.float64


@dataclass
class Batch:
    """What early exit reads of a ForwardBatch."""

    forward_mode: ForwardMode
    batch_size: int
    input_ids: torch.Tensor
    positions: torch.Tensor
    req_pool_indices: torch.Tensor
    seq_lens: torch.Tensor
    seq_lens_cpu: torch.Tensor
    seq_lens_sum: int
    out_cache_loc: torch.Tensor
    lora_ids: list[str] | None = None
    return_logprob: bool = False
    capture_hidden_mode: CaptureHiddenMode = CaptureHiddenMode.NULL


class Rows(AttentionBackend):
    """K and V [layers, slots, WIDTH], NaN where nothing is; `table` [requests, context] of slots."""

    def __init__(self) -> None:
        self.kv = torch.full((2, LAYERS, SLOTS, WIDTH), float("nan"), dtype=KINDS)
        self.table = torch.zeros(REQUESTS, CONTEXT, dtype=torch.int64)
        self.adapters: list[str] | None = None  # of the rows that LoRA layers expect
        self.req_to_token_pool = self.token_to_kv_pool = self

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Rows are read from the batch."""

    def adapt(self, batch: Any) -> None:
        """As LoRAManager.prepare_lora_batch."""
        self.adapters = list(batch.lora_ids)

    def forward(self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, *_: Any, **__: Any) -> torch.Tensor:
        """A prefill's tokens, and a step's, are alike: each attends to as many as its length says."""
        assert self.adapters == forward_batch.lora_ids
        self.kv[0, layer.layer_id, forward_batch.out_cache_loc] = k
        self.kv[1, layer.layer_id, forward_batch.out_cache_loc] = v
        requests, lengths = forward_batch.req_pool_indices.tolist(), (forward_batch.positions + 1).tolist()
        every = zip(q, requests, lengths, strict=True)
        return torch.stack([self._row(*each, layer.layer_id) for each in every])

    def _row(self, q: torch.Tensor, request: int, length: int, layer: int) -> torch.Tensor:
        k, v = self.kv[:, layer, self.table[request, :length]]
        return (k @ q).softmax(0) @ v


class Layer(torch.nn.Module):
    """As LlamaDecoderLayer."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.layer_id, self.tp_q_head_num, self.v_head_dim = number, 1, WIDTH
        shape = (4, WIDTH, WIDTH)
        self.weights = torch.randn(shape, dtype=KINDS) / WIDTH**0.5

    def input_layernorm(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(hidden, (WIDTH,), eps=1e-5)

    def self_attn(self, positions: torch.Tensor, hidden_states: torch.Tensor, forward_batch: Any) -> torch.Tensor:
        turned = hidden_states + 0.1 * torch.sin(positions.to(KINDS))[:, None]
        q, k, v = (x @ w for x, w in zip((turned, turned, hidden_states), self.weights[:3], strict=True))
        return get_attn_backend().forward(q, k, v, self, forward_batch)

    def forward(self, positions: Any, hidden: torch.Tensor, batch: Any, residual: torch.Tensor | None) -> Any:
        residual = hidden if residual is None else hidden + residual
        hidden = self.self_attn(positions, self.input_layernorm(residual), batch)
        residual = residual + hidden
        return torch.tanh(self.input_layernorm(residual) @ self.weights[3]), residual


class Model(torch.nn.Module):
    """As LlamaForCausalLM."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Body()
        self.lm_head = torch.randn(WORDS, WIDTH, dtype=KINDS)
        self.logits_processor = Logits()

    def forward(self, batch: Batch) -> LogitsProcessorOutput:
        hidden = self.model(batch.input_ids, batch.positions, batch)
        return self.logits_processor(batch.input_ids, hidden, self.lm_head, batch)


class Body(torch.nn.Module):
    """As LlamaModel."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(WORDS, WIDTH, dtype=KINDS).requires_grad_(False)
        self.layers = torch.nn.ModuleList(Layer(number) for number in range(LAYERS))

    def norm(self, hidden: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.nn.functional.rms_norm(hidden + residual, (WIDTH,), eps=1e-5), None

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, batch: Batch) -> torch.Tensor:
        hidden, residual = self.embed_tokens(input_ids), None
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, batch, residual)
        return self.norm(hidden, residual)[0]


class Logits(torch.nn.Module):
    """As LogitsProcessor."""

    def forward(self, input_ids: Any, hidden: torch.Tensor, head: torch.Tensor, batch: Any) -> LogitsProcessorOutput:
        return LogitsProcessorOutput(next_token_logits=hidden @ head.T)


class Toy(Attention):
    """SGLang's dense pool takes K and V by a call of its own; the toy's writes them."""

    def begin(self, batch: Any, turns: Any, rows: Any, ahead: bool) -> None:
        assert batch.batch_size == len(batch.input_ids) == len(batch.out_cache_loc) == batch.seq_lens.numel()
        assert (batch.positions + 1 == batch.seq_lens).all() and batch.seq_lens_sum == int(batch.seq_lens.sum())

    def whole(self, batch: Any) -> None:
        """Nothing is planned."""

    def store(self, q: Any, k: torch.Tensor, v: torch.Tensor, layer: Any, batch: Any) -> None:
        for number, rows in enumerate((k, v)):
            self.backend.kv[number, layer.layer_id, batch.out_cache_loc] = rows


class ToyPlan(Plan):
    """Rows are read from the batch, whose numbers must be those that were planned, as of SGLang's own graphs."""

    def __init__(self, backend: Rows) -> None:
        self.backend, self.planned = backend, dict[int, list[torch.Tensor]]()

    def outside(self, batch: Any, late: Any) -> None:
        self.planned[batch.batch_size] = [each.clone() for each in self.numbers(batch)]

    def inside(self, batch: Any, late: int, width: int, begins: bool) -> None:
        assert all(map(torch.equal, self.planned[batch.batch_size], self.numbers(batch)))

    @staticmethod
    def numbers(batch: Any) -> tuple[torch.Tensor, ...]:
        return batch.seq_lens, batch.seq_lens_cpu, batch.positions, batch.out_cache_loc, batch.req_pool_indices


def exits_of(model: Model, layers: list[int], threshold: float) -> Exits:
    """Random adapters, one threshold for all."""
    branches = tuple(
        Branch(layer, WORDS, 1e-5, *(torch.randn(shape, dtype=KINDS) for shape in ((WIDTH,), (2, WIDTH), (WIDTH, 2))))
        for layer in layers
    )
    count = len(layers)
    rows = [(0.5, threshold), (1.0, 1.0)]
    points = tuple(OperatingPoint(a, (t,) * count, LAYERS, (0.0,) * count + (1.0,)) for a, t in rows)
    return Exits(LAYERS, WIDTH, WORDS, "probability", branches, points)


@dataclass(eq=False)
class Req:
    """A request: its tokens, and the slots [n] of those that have rows."""

    tokens: list[int]
    slot: int
    slots: list[int] = field(default_factory=list)
    told: list[tuple[int, torch.Tensor]] = field(default_factory=list)  # logits, with the layers that they are behind


class World:
    """A scheduler's part: requests come, decode together, end, are retracted and begin again."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, seed: int, layers: list[int], threshold: float, copied: bool = False,
        max_batch: int = 8, agreement: float = 0.5, most: int = 1 << 30, parts: bool = False,
    ) -> None:  # fmt: skip
        torch.manual_seed(seed)
        self.random, self.rows, self.model = random.Random(seed), Rows(), Model()
        self.running: list[Req] = []
        self.free = list(range(1, SLOTS))
        self.random.shuffle(self.free)
        self.kept: list[tuple[list[int], list[int]]] = []  # tokens and slots of ended requests, as a radix tree's
        self.adapts = not parts  # which know no adapters
        runner = SimpleNamespace(
            model=self.model,
            server_args=SimpleNamespace(enable_lora=self.adapts),
            lora_manager=SimpleNamespace(prepare_lora_batch=self.rows.adapt),
            dtype=KINDS,
            device="cpu",
            tp_group=SimpleNamespace(world_size=1, rank_in_group=0),
        )
        rules = Rules(agreement, copied, max_batch, sampled=5)
        self.exits = EarlyExit(runner, exits_of(self.model, layers, threshold), rules)
        self.exits.install()
        self.exits.attention = Toy(self.rows)
        self.exits.attention.most = most
        if parts:
            self.exits.stop_at(AHEAD)
            self.exits.parts = recorded(self.exits, ToyPlan(self.rows), Recorder(torch.device("cpu")))
        monkeypatch.setattr(hooks, "_passes", self.exits)
        self.depth = LAYERS

    def _run(self, mode: ForwardMode, reqs: list[Req], counts: list[int]) -> torch.Tensor:
        """The last `counts` tokens of each, through SGLang's seams: logits of all."""
        lengths = [len(req.tokens) for req in reqs]
        new = [list(range(n - count, n)) for n, count in zip(lengths, counts, strict=True)]
        for req, mine in zip(reqs, new, strict=True):
            req.slots += [self.free.pop() for _ in mine]
            self.rows.table[req.slot, : len(req.slots)] = torch.tensor(req.slots)
        on_host = torch.tensor(lengths)
        batch = Batch(
            mode, len(reqs),
            torch.tensor([req.tokens[n] for req, mine in zip(reqs, new, strict=True) for n in mine]),
            torch.tensor([n for mine in new for n in mine]),
            torch.tensor([req.slot for req, mine in zip(reqs, new, strict=True) for _ in mine]),
            on_host.clone(), on_host, sum(lengths),
            torch.tensor([req.slots[n] for req, mine in zip(reqs, new, strict=True) for n in mine]),
        )  # fmt: skip
        if self.adapts:
            batch.lora_ids = [f"of {req.slot}" for req in reqs]
            self.rows.adapt(batch)
        schedule = SimpleNamespace(reqs=reqs, forward_mode=mode, seq_lens_cpu=on_host)

        def forward(worker: Any, _: Any) -> torch.Tensor:
            with forward_context(ForwardContext(attn_backend=self.rows)):
                return self.model(batch).next_token_logits

        logits: torch.Tensor = hooks.batch_runs(forward, None, schedule)
        for tensor in (batch.input_ids, batch.positions, batch.out_cache_loc, batch.seq_lens, batch.seq_lens_cpu):
            tensor.fill_(-1)  # SGLang's buffers are the next pass's
        return logits

    def begin(self, prompt: list[int]) -> Req:
        """A request comes, with what a request before has left of its prompt, if any has."""
        req = Req(list(prompt), next(n for n in range(REQUESTS) if n not in {each.slot for each in self.running}))
        self._prefill(req)
        self.running.append(req)
        return req

    def _prefill(self, req: Req) -> None:
        shared = max(self.kept, key=lambda kept: _common(kept[0], req.tokens), default=([], []))
        count = min(_common(shared[0], req.tokens), len(req.tokens) - 1)
        req.slots = list(shared[1][:count])
        logits = self._run(ForwardMode.EXTEND, [req], [len(req.tokens) - count])
        self._take(req, logits[-1], LAYERS)

    def step(self) -> None:
        """All that run decode a token."""
        counts = self.exits.counts
        before, exits = counts.layers, dict(counts.exits)
        logits = self._run(ForwardMode.DECODE, self.running, [1] * len(self.running))
        left = [layer for layer, count in counts.exits.items() if count > exits[layer]]
        depth = left[0] if left else LAYERS
        ran = (counts.layers - before) / len(self.running)
        assert ran == LAYERS if not left else depth <= ran <= min(depth + self.exits.ahead, LAYERS - 1)
        for req, row in zip(self.running, logits, strict=True):
            self._take(req, row, depth)

    def _take(self, req: Req, logits: torch.Tensor, depth: int) -> None:
        assert torch.isfinite(logits).all(), "a row that nobody wrote was attended to"
        req.told.append((depth, logits.clone()))
        req.tokens.append(int(logits.argmax()))

    def end(self, req: Req) -> int:
        """What of a request that ends the tree keeps; the rest is poisoned."""
        self.running.remove(req)
        count: int = hooks.kept(lambda each: len(each.slots), req)
        self.kept.append((req.tokens[:count], req.slots[:count]))
        self._lose(req, req.slots[count:])
        return count

    def drop(self, req: Req) -> None:
        """It is aborted: nothing is kept."""
        self.running.remove(req)
        self._lose(req, req.slots)

    def retract(self, req: Req) -> None:
        """It loses its rows, and comes again with what it has said."""
        self.drop(req)
        req.slots = []
        self._prefill(req)
        self.running.append(req)

    def _lose(self, req: Req, slots: list[int]) -> None:
        taken = {slot for _, kept in self.kept for slot in kept}
        mine = [slot for slot in slots if slot not in taken]
        self.rows.kv[:, :, mine] = float("nan")
        self.free += mine

    def reference(self, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V [2, LAYERS, n, WIDTH] of full depth, and states [LAYERS + 1, n, WIDTH] behind every layer."""
        other, count = Rows(), len(tokens)
        other.table[0, :count] = torch.arange(count)
        at = torch.arange(count)
        batch = Batch(ForwardMode.EXTEND, 1, torch.tensor(tokens), at, torch.zeros(count, dtype=torch.int64), at + 1,
                      at + 1, 0, at)  # fmt: skip
        hidden, residual, states = self.model.model.embed_tokens(batch.input_ids), None, []
        with forward_context(ForwardContext(attn_backend=other)):
            for layer in self.model.model.layers:
                states.append(hidden if residual is None else hidden + residual)
                hidden, residual = layer(at, hidden, batch, residual)
        return other.kv[:, :, :count], torch.stack([*states, hidden + residual])

    def check(self, req: Req) -> None:
        """Rows that are said to be whole are full depth's; what was told is the branch's, or full depth's."""
        rows, states = self.reference(req.tokens[: len(req.slots)])
        count: int = hooks.kept(lambda each: len(each.slots), req)
        torch.testing.assert_close(self.rows.kv[:, :, req.slots[:count]], rows[:, :, :count], atol=1e-9, rtol=1e-9)
        first = len(req.tokens) - len(req.told)
        for number, (depth, logits) in enumerate(req.told):
            state = states[depth, first + number - 1]
            torch.testing.assert_close(logits, self.wanted(depth, state), atol=1e-5, rtol=1e-5)

    def wanted(self, depth: int, state: torch.Tensor) -> torch.Tensor:
        """Logits [V] of a state behind so many layers."""
        head = self.model.lm_head.T
        if depth == LAYERS:
            return torch.nn.functional.rms_norm(state, (WIDTH,), eps=1e-5) @ head
        branch = next(each for each in self.exits.exits.branches if each.layer == depth)
        return branch.logits(state[None], lambda hidden: hidden @ head)[0]


def _common(one: list[int], other: list[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


__all__ = ["CONTEXT", "LAYERS", "REQUESTS", "WORDS", "Req", "Turn", "World"]
