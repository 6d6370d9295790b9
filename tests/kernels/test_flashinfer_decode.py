"""FlashInfer's decode path against the torch reference; on the CPU its kernels are replaced by a reader of plans."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

from core_helpers import flat_rows, make_settings
from fake_flashinfer import PROCESSORS, FakeWrapper

from hetero_sglang.cache.device_tables import DeviceTables
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.index_store import LayerIndex
from hetero_sglang.cache.lanes import Mark
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.errors import HeteroError
from hetero_sglang.ops import triton
from hetero_sglang.ops.base import Arrivals, LayerBuffers
from hetero_sglang.ops.chosen import decode_kernel
from hetero_sglang.ops.reference.attention import decode_exact
from hetero_sglang.ops.step import DecodeStep
from hetero_sglang.profile.head_profile import HeadProfile, LayerRoles
from hetero_sglang.profile.roles import Role

HEADS, CONTEXT, WIDTH = 4, 8192, 6
MOST = 40  # rows that come to a head
RESIDENT = [(1,), (), (0, 1, 2, 3), (0, 3), (2,)]  # by layer
NAN = float("nan")


class World:
    """Stores, pool and requests of a small model, with random pages and token slots; rows that come to every second
    compressed head while it attends."""

    def __init__(self, dim: int, group: int, dtype: torch.dtype, device: str, kernel: str = "flashinfer") -> None:
        self.dim, self.group, self.dtype, self.device = dim, group, dtype, device
        self.settings = make_settings(_profile(dim, group), 0.6, window=16, sink=4, dense_below=256)
        self.layout = self.settings.layout
        pages = 12000
        self.pool = HotPool(pages, self.settings.rule.page_size, dim, dim, dtype, device)
        self.pool._free = torch.randperm(pages)
        slots = 40000
        self.free_slots = torch.randperm(slots)
        role = torch.empty(0)
        self.buffers = []
        for spec in self.layout.layers:
            k, v = (torch.empty(slots, len(spec.resident), dim, dtype=dtype, device=device) for _ in "kv")
            host = torch.empty(1, len(spec.compressed), dim)
            pool = self.pool
            self.buffers.append(LayerBuffers(role, k, v, host, pool.k, pool.v, pool.position, pool.score, spec.first))
        self.tables = DeviceTables(16, self.layout.num_compressed, pages, device)
        self.req_to_token = torch.zeros(16, CONTEXT, dtype=torch.int32, device=device)
        self.requests: dict[int, WorkingSet] = {}
        self.q = torch.full((len(RESIDENT), WIDTH, HEADS * group, dim), NAN, dtype=dtype, device=device)
        make = decode_kernel(kernel, triton, self.buffers)
        self.work = triton.Workspace(WIDTH, HEADS, group, CONTEXT, CONTEXT, 1, MOST, device, 0, self.pool)
        self.step = DecodeStep(triton, self.settings, self.tables, WIDTH, CONTEXT, group, dim, dtype, make, self.work)
        self.arrivals = [self._arrivals(layer) for layer in range(len(self.buffers))]

    def start(self, slot: int, prompt: int, more: int) -> None:
        ws = self.requests[slot] = WorkingSet(self.pool, self.settings.rule, self.settings.rule.grant(prompt, more))
        ws.slot = slot
        self.tables.put([ws])
        taken, self.free_slots = self.free_slots.split([prompt + more, len(self.free_slots) - prompt - more])
        self.req_to_token[slot, : prompt + more] = taken.int().to(self.device)

    def end(self, slot: int) -> None:
        self.requests.pop(slot).release()

    def begin(self, lengths: dict[int, int], width: int) -> None:
        """Fresh K and V of these tokens, NaN everywhere else; the step is told of them."""
        stores = [x for b in self.buffers for x in (b.resident_k, b.resident_v)]
        self.work.comes.copy_(torch.randint(0, MOST + 1, self.work.comes.shape) * torch.randint(0, 2, (1,)))
        here = torch.arange(MOST, device=self.device) < self.work.comes[:, None]
        for tensor in (self.work.arrived_k, self.work.arrived_v):
            tensor.normal_()[~here.flatten()] = NAN
        for tensor in (self.pool.k, self.pool.v, self.q, *stores):
            tensor.fill_(NAN)
        self.q[:, : len(lengths)].normal_()
        for slot, length in lengths.items():
            slots = self.req_to_token[slot, :length].long()
            for tensor in stores:
                tensor[slots] = torch.randn(length, *tensor.shape[1:], device=self.device).to(self.dtype)
            for head in range(self.layout.num_compressed):
                rows = self.rows(slot, head, length)
                shape = (2, len(rows), self.dim)
                self.pool.write(rows, *torch.randn(shape, device=self.device).to(self.dtype))
        none = [0] * len(lengths)
        self.step.fill([list(lengths.values()), list(lengths), *[none] * 4], width, self.req_to_token)

    def rows(self, slot: int, head: int, length: int) -> torch.Tensor:
        ws = self.requests[slot]
        return flat_rows(ws, head, torch.arange(min(ws.caps[head], length))).to(self.device)

    def indexed(self, layer: int) -> tuple[int, ...]:
        """Of a layer's compressed heads."""
        return tuple(range(len(self.layout.layers[layer].compressed)))[::2]

    def _arrivals(self, layer: int) -> Arrivals | None:
        which, none = torch.tensor(self.indexed(layer), dtype=torch.int32, device=self.device), torch.empty(0)
        if not which.numel():
            return None
        heads = torch.tensor(self.layout.layers[layer].compressed, dtype=torch.int32, device=self.device)[::2]
        return Arrivals(LayerIndex(heads.contiguous(), which, *[none] * 5, (), 0), self.work, Mark(None))

    def attend(self, width: int) -> torch.Tensor:
        now = self.step.plan(width)
        outputs = [
            self.step.kernel.attend(
                layer, self.q[layer, :width], buffers, now, 0.7 * self.dim**-0.5, True, self.arrivals[layer]
            )
            for layer, buffers in enumerate(self.buffers)
        ]
        return torch.stack(outputs)

    def check(self, got: torch.Tensor, lengths: dict[int, int]) -> None:
        """got [layers, width, Hq, D]."""
        assert bool(got.isfinite().all())
        for layer, (spec, buffers) in enumerate(zip(self.layout.layers, self.buffers, strict=True)):
            for at, (slot, length) in enumerate(lengths.items()):
                slots = self.req_to_token[slot, :length].long()
                parts = {h: (buffers.resident_k[slots, r], buffers.resident_v[slots, r])
                         for r, h in enumerate(spec.resident)}  # fmt: skip
                for c, head in enumerate(spec.compressed):
                    rows = self.rows(slot, spec.first + c, length)
                    parts[head] = tuple(x.view(-1, self.dim)[rows] for x in (self.pool.k, self.pool.v))
                    indexed = self.indexed(layer)
                    if c in indexed:
                        unit = at * len(indexed) + indexed.index(c)
                        came = slice(unit * MOST, unit * MOST + int(self.work.comes[unit]))
                        more = (self.work.arrived_k[came], self.work.arrived_v[came])
                        parts[head] = tuple(map(torch.cat, zip(parts[head], more, strict=True)))
                for head, (k, v) in parts.items():
                    mine = slice(head * self.group, (head + 1) * self.group)
                    q = self.q[layer, at, mine][None]
                    args = (x.float() for x in (q, k[:, None], v[:, None]))
                    want = decode_exact(*args, 0.7 * self.dim**-0.5)[0]
                    error = (got[layer, at, mine].float() - want).norm() / want.norm()
                    assert float(error) < 1e-2, (layer, slot, length, head, float(error))


def _profile(dim: int, group: int) -> HeadProfile:
    layers = []
    for resident in RESIDENT:
        roles = [Role.VOLATILE if h in resident else Role.ANCHOR for h in range(HEADS)]
        layers.append((roles, [0.0 if r.resident else 1.0 + 0.1 * (i - 1.5) for i, r in enumerate(roles)]))
    flat = [w for _, row in layers for w in row if w]
    weight = sum(flat) / len(flat)
    built = tuple(LayerRoles(tuple(r), tuple(w / weight for w in row), (-1,) * HEADS) for r, row in layers)
    return HeadProfile(len(built), HEADS, HEADS * group, dim, built)


def _life(world: World, long: int) -> list[tuple[dict[int, int], int]]:
    """Steps: full heads beside growing ones over pages and chunks, requests that come and go, padding."""
    world.start(3, 20, 300)  # grows: its cap is not reached
    world.start(5, long, 200)
    world.start(7, 1, 140)
    steps = [({3: 20 + i, 5: long + i, 7: 1 + i}, 4) for i in (1, 2, 12, 28, 44, 107, 108, 109, 130, 139)]
    return [*steps, ({5: long + 200}, WIDTH), ({7: 126, 3: 240, 5: long + 140}, 3), ({3: 1}, 1)]


def _run(world: World, long: int = 3000) -> None:
    for lengths, width in _life(world, long):
        world.begin(lengths, width)
        world.check(world.attend(width), lengths)
    world.end(5)
    world.start(1, long + 2000, 100)  # in freed pages
    world.start(5, 700, 100)
    for lengths, width in (({5: 701, 1: long + 2001, 3: 300}, 4), ({1: long + 2100, 5: 800}, 2)):
        world.begin(lengths, width)
        world.check(world.attend(width), lengths)


@pytest.mark.parametrize("kernel", ["flashinfer", "auto"])
def test_plans_lists_and_orders_without_a_card(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("the kernels themselves are tested below")
    properties = SimpleNamespace(multi_processor_count=PROCESSORS)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    fake = SimpleNamespace(BatchDecodeWithPagedKVCacheWrapper=FakeWrapper)
    monkeypatch.setitem(sys.modules, "flashinfer", fake)
    _run(World(16, 2, torch.float32, "cpu", kernel), 3000 if kernel == "flashinfer" else 400)  # one is interpreted


def test_values_of_another_size_are_refused() -> None:
    step = SimpleNamespace(layout=None, tables=SimpleNamespace(device="cpu", page_list=None), context=1, slots=None,
                           group=1, v_dim=64, dtype=torch.float16)  # fmt: skip
    layer = SimpleNamespace(hot_k=torch.empty(1, 16, 128))
    with pytest.raises(HeteroError, match="128 and 64; use --hetero-decode-kernel triton"):
        decode_kernel("flashinfer", triton, [layer])(step)


SHAPES = [(dim, group, dtype) for dtype in ("bfloat16", "float16") for dim in (64, 128) for group in (1, 4, 8)]
on_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="FlashInfer's kernels need an NVIDIA GPU")


@on_card
@pytest.mark.gpu
@pytest.mark.parametrize(("dim", "group", "dtype"), [*SHAPES, (256, 4, "bfloat16"), (128, 5, "bfloat16")])
def test_eager_steps_equal_the_reference(dim: int, group: int, dtype: str) -> None:
    torch.manual_seed(dim * group)
    _run(World(dim, group, getattr(torch, dtype), "cuda"))


@on_card
@pytest.mark.gpu
@pytest.mark.parametrize(("dim", "group", "dtype"), SHAPES)
def test_replayed_steps_equal_the_reference(dim: int, group: int, dtype: str) -> None:
    torch.manual_seed(dim + group)
    world = World(dim, group, getattr(torch, dtype), "cuda")
    graphs = {}
    for width in (WIDTH, 3):  # largest first, with nothing but padding, as SGLang captures
        world.begin({}, width)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            world.attend(width)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = world.attend(width)
        graphs[width] = (graph, out)

    def replay(lengths: dict[int, int]) -> None:
        width = 3 if len(lengths) <= 3 else WIDTH
        world.begin(lengths, width)
        graphs[width][0].replay()
        world.check(graphs[width][1], lengths)

    for lengths, _ in _life(world, 3000):
        replay(lengths)
    world.end(5)
    for slot, prompt in ((1, 5000), (5, 700), (9, 260)):
        world.start(slot, prompt, 100)
    for lengths in ({5: 701, 1: 5001, 3: 300, 9: 261, 7: 77}, {1: 5100, 5: 800}, {9: 360, 7: 100, 5: 750, 1: 5050}):
        replay(lengths)
