"""Small random profiles, caches and a dense oracle for the core's tests."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import ModuleType
from weakref import WeakKeyDictionary

import torch
from waiting import wait_for

from hetero_sglang.cache.counters import Counters
from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.resident_store import ResidentStore
from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.config.settings import Settings, resolve
from hetero_sglang.engine.engine import Engine
from hetero_sglang.engine.plan import plan_extend
from hetero_sglang.policy.heterocache import HeteroCache
from hetero_sglang.profile.head_profile import HeadProfile, LayerRoles
from hetero_sglang.profile.roles import Role

DIM, GROUP = 16, 2


def random_profile(seed: int, layers: int = 3, heads: int = 4) -> HeadProfile:
    """Roles at random, with at least one compressed head in all."""
    rng = random.Random(seed)
    made = []
    for _ in range(layers):
        roles, pivots = [], []
        for head in range(heads):
            role = rng.choice([Role.ANCHOR, Role.VOLATILE, Role.PIVOT, Role.SATELLITE])
            if role is Role.SATELLITE and Role.PIVOT not in roles:
                role = Role.PIVOT
            roles.append(role)
            known = [h for h, r in enumerate(roles) if r is Role.PIVOT]
            pivots.append(head if role is Role.PIVOT else rng.choice(known) if role is Role.SATELLITE else -1)
        made.append((roles, pivots))
    made[-1][0][-1], made[-1][1][-1] = Role.ANCHOR, -1
    # a pivot that lost its last satellite to the line above is harmless: a cluster of one
    weights = [[0.0 if r.resident else rng.uniform(0.7, 1.3) for r in roles] for roles, _ in made]
    flat = [w for row in weights for w in row if w]
    mean = sum(flat) / len(flat)
    built = tuple(
        LayerRoles(tuple(roles), tuple(w / mean for w in row), tuple(pivots))
        for (roles, pivots), row in zip(made, weights, strict=True)
    )
    return HeadProfile(layers, heads, heads * GROUP, DIM, built)


def make_settings(profile: HeadProfile, keep_ratio: float | None = None, **options: object) -> Settings:
    """Settings with small windows; keep ratio None: halfway between the floor and 1."""
    defaults = {
        "policy": HeteroCache(),
        "window": 6,
        "sink": 2,
        "dense_below": 64,
        "drift_threshold": 0.0,
        "monitor_interval": 2,
        "observe": 8,
    }
    ratio = keep_ratio if keep_ratio is not None else (profile.floor + 1) / 2
    return resolve(profile, keep_ratio=ratio, **{**defaults, **options})


def demand(settings: Settings, prompt: int, max_new: int) -> int:
    """Hot pages of a request that begins."""
    rule = settings.rule
    return int(rule.pages(rule.rows(rule.grant(prompt, max_new))).sum())


def make_cache(
    settings: Settings,
    slots: int = 600,
    pages: int = 2000,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> TieredCache:
    """A cache whose every buffer is poisoned with NaN: reading what nobody wrote shows."""
    layout = settings.layout
    resident = ResidentStore(slots, [len(x.resident) for x in layout.layers], DIM, DIM, dtype, device)
    pin = torch.device(device).type == "cuda"
    host = HostStore(slots, [len(x.compressed) for x in layout.layers], DIM, DIM, dtype, pin)
    hot = HotPool(pages, settings.rule.page_size, DIM, DIM, dtype, device)
    for tensor in (*resident.k, *resident.v, *host.blocks, hot.k, hot.v):
        tensor.fill_(float("nan"))
    return TieredCache(settings, resident, host, hot, Counters())


@dataclass
class Request:
    """A request driven by hand: random q, k, v for every token and layer."""

    cache: TieredCache
    slot: int
    prompt: int
    total: int
    token_slots: torch.Tensor  # [total]
    seed: int = 0
    q: list[torch.Tensor] = field(default_factory=list)  # per layer [total, Hq, D]
    k: list[torch.Tensor] = field(default_factory=list)  # per layer [total, H, D]
    v: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        layers = self.cache.settings.layout.layers
        for layer in layers:
            heads = len(layer.resident) + len(layer.compressed)
            for store, count in ((self.q, heads * GROUP), (self.k, heads), (self.v, heads)):
                store.append(torch.randn(self.total, count, DIM, generator=generator))

    def start(self) -> None:
        self.cache.start(self.slot, self.cache.admission.grant(self.prompt, self.total - self.prompt))

    @property
    def ws(self):
        return self.cache.requests[self.slot]


def table_of(requests: list[Request], width: int = 2048) -> torch.Tensor:
    """req_to_token of the requests: [slots, width] int32."""
    table = torch.zeros(max(r.slot for r in requests) + 1, width, dtype=torch.int32)
    for r in requests:
        table[r.slot, : r.total] = r.token_slots.int()
    return table


_engines: WeakKeyDictionary[TieredCache, Engine] = WeakKeyDictionary()


def engine_of(cache: TieredCache, ops: ModuleType | None = None) -> Engine:
    """The cache's engine, made when first asked for; `ops`: other operations than its device's."""
    if cache not in _engines:
        layer = cache.settings.layout.layers[0]
        heads = (len(layer.resident) + len(layer.compressed)) * GROUP
        _engines[cache] = Engine(cache, 8, 2048, heads, ops, torch.float32)
    return _engines[cache]


def worker_up(engine: Engine) -> bool:
    """Wait until the engine's worker is up."""

    def up() -> bool:
        engine.poll()
        return engine.finder.anchors.ranking.client.up

    return wait_for(up, "the worker is not up")


def prefill(requests: list[Request], spans: list[tuple[int, int]]) -> list[list[torch.Tensor]]:
    """Run one prefill batch over tokens [a, b) of each request; returns outputs [layer][request]."""
    cache = requests[0].cache
    engine, counts = engine_of(cache), [b - a for a, b in spans]
    table = table_of(requests).to(engine.device)
    engine.begin_extend(plan_extend(cache, [r.slot for r in requests], [b for _, b in spans], counts, table))
    outputs = []
    for layer in range(len(engine.layers)):
        q, k, v = (
            torch.cat([getattr(r, name)[layer][a:b] for r, (a, b) in zip(requests, spans, strict=True)])
            for name in "qkv"
        )
        slots = torch.cat([r.token_slots[a:b] for r, (a, b) in zip(requests, spans, strict=True)])
        out = engine.extend(layer, *(x.to(engine.device) for x in (slots, q, k, v)), DIM**-0.5)
        outputs.append(list(out.cpu().split(counts)))
    return outputs


def decode(requests: list[Request], lengths: list[int], width: int | None = None) -> torch.Tensor:
    """One decode step, padded to `width`: request i has `lengths[i]` tokens after it; [layer, request, Hq, D]."""
    cache = requests[0].cache
    engine, width = engine_of(cache), width or len(requests)
    step, table = engine.eager(width, max(lengths)), table_of(requests).to(engine.device)
    engine.begin_decode(step, [r.slot for r in requests], lengths, width, table)
    tables = step.plan(width)
    outputs = []
    for layer in range(len(engine.layers)):
        q, k, v = (
            torch.stack([getattr(r, name)[layer][n - 1] for r, n in zip(requests, lengths, strict=True)])
            for name in "qkv"
        )
        rows = torch.cat((q, k, v), 1)  # as a model's qkv: slices of one row
        rows = torch.cat((rows, torch.full_like(rows[:1], float("nan")).expand(width - len(rows), -1, -1)))
        q, k, v = rows.to(engine.device).split([q.shape[1], k.shape[1], v.shape[1]], 1)
        slots = [int(r.token_slots[n - 1]) for r, n in zip(requests, lengths, strict=True)]
        slots = torch.tensor(slots + [0] * (width - len(slots)), device=engine.device)
        outputs.append(engine.decode(layer, step, tables, slots, q, k, v, DIM**-0.5)[: len(requests)].cpu())
    engine.poll()  # the counters are up to date
    return torch.stack(outputs)


@dataclass
class Guess:
    """A tree of a request's new tokens: each one's parent, -1 of the first; and those that stay, from the first on.

    The i-th that stays is the request's token behind its first `length + i` ones; the others are nobody's."""

    request: Request
    length: int
    parents: list[int]
    path: list[int]
    seed: int = 0

    def rows(self, layer: int) -> list[torch.Tensor]:
        """q [n, Hq, D], k [n, H, D] and v [n, H, D] of the tree's tokens."""
        made, g = [], torch.Generator().manual_seed(1000 * self.seed + layer)
        for name in "qkv":
            mine = getattr(self.request, name)[layer]
            rows = torch.randn(len(self.parents), *mine.shape[1:], generator=g)
            rows[self.path] = mine[self.length : self.length + len(self.path)]
            made.append(rows)
        return made

    def above(self, node: int) -> list[int]:
        """The tokens that one attends to, first to last: itself too."""
        found = [node]
        while self.parents[found[0]] >= 0:
            found.insert(0, self.parents[found[0]])
        return found

    @property
    def slots(self) -> torch.Tensor:
        return self.request.token_slots[self.length : self.length + len(self.parents)]

    @property
    def tree(self) -> torch.Tensor:
        """Bool [n, n]."""
        made = torch.zeros(len(self.parents), len(self.parents), dtype=torch.bool)
        for node in range(len(self.parents)):
            made[node, self.above(node)] = True
        return made


def verify(guesses: list[Guess], width: int | None = None) -> list[torch.Tensor]:
    """One verification, padded to `width`, and what follows of it; outputs [layer, n, Hq, D] by request."""
    engine, width = engine_of(guesses[0].request.cache), width or len(guesses)
    each, device = len(guesses[0].parents), engine.device
    made = engine.eager_verify(width, max(x.length for x in guesses) + 1, each - 1)
    table = table_of([x.request for x in guesses]).to(device)
    slots, tree = torch.cat([x.slots for x in guesses]).to(device), torch.stack([x.tree for x in guesses]).to(device)
    requests, lengths = [x.request.slot for x in guesses], [x.length for x in guesses]
    engine.begin_verify(made, requests, lengths, width, table, slots, tree)
    made.plan(width)
    padding, outputs = (width - len(guesses)) * each, []
    given = torch.cat((slots, slots.new_zeros(padding)))
    for layer in range(len(engine.layers)):
        rows = [torch.cat(each) for each in zip(*(x.rows(layer) for x in guesses), strict=True)]
        rows = [torch.cat((x, torch.full_like(x[:1], float("nan")).expand(padding, -1, -1))) for x in rows]
        out = engine.verify(layer, made, given, *(x.to(device) for x in rows), DIM**-0.5)
        outputs.append(out[: len(guesses) * each].unflatten(0, (-1, each)).cpu())
    to = torch.cat([x.slots[: len(x.path)] for x in guesses])
    of = torch.cat([x.slots[x.path] for x in guesses])
    more = slots.new_zeros(len(slots) - len(to))  # as SGLang packs them
    made.accept(torch.cat((to.to(device), more)), torch.cat((of.to(device), more)))
    engine.poll()
    return list(torch.stack(outputs, 1))


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Naive attention of one query over given tokens, in float64: q [G, D], k [L, D], v [L, D] -> [G, D]."""
    weight = (q.double() @ k.double().T * DIM**-0.5).softmax(-1)
    return (weight @ v.double()).float()


def held_positions(request: Request, number: int, length: int) -> torch.Tensor:
    """Positions of a compressed head's rows that count, read back from the pool."""
    ws = request.ws
    count = min(ws.caps[number], length)
    held = request.cache.hot.position.view(-1)[flat_rows(ws, number, torch.arange(count))].long().cpu()
    settings = request.cache.settings
    run = [run for run, x in zip(settings.runs, settings.layout.layers, strict=True) if x.first <= number][-1]
    if count == length or run == 1:
        return held
    newest = torch.arange(count) >= count - ws.rule.turning(count)
    bound = (length - ws.rule.window_of(run)) // run * run  # older ones may be among the selected
    return held[~newest | (held >= bound)]


def flat_rows(ws: WorkingSet, number: int, rows: torch.Tensor) -> torch.Tensor:
    """Flat hot rows of one head's rows [n], given in working-set order."""
    size = ws.pool.page_size
    return ws.table[number][rows // size] * size + rows % size


def selected_tokens(request: Request, number: int) -> torch.Tensor:
    """What lies in a compressed head's selected rows."""
    tokens = request.cache.hot.position.view(-1)[selected_rows(request.ws, number)].long().cpu()
    return tokens[tokens >= 0]


def selected_rows(ws: WorkingSet, number: int) -> torch.Tensor:
    """Flat hot rows of a full head that are neither sinks nor ring."""
    rule, cap = ws.rule, ws.caps[number]
    return flat_rows(ws, number, torch.arange(rule.sink, max(rule.sink, cap - rule.turning(cap))))
