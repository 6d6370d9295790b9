"""Decode attention by FlashInfer: one run over a layer's resident heads, one over its compressed ones.

Resident heads read the requests' slot lists with a page size of 1; compressed heads are rows (request, head) of one KV
head each, which read their page lists where DeviceTables keeps them. FlashInfer plans once per batch width, on the
host; what depends on lengths is filled in on the device in every step (split.py), so no plan is ever stale.
The tensor-core kernels serve every group: a group's query heads are rows of one tile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hetero_sglang.cache.lanes import upload
from hetero_sglang.errors import HeteroError
from hetero_sglang.ops.base import Arrivals, DecodeKernel, Drafts, LayerBuffers, StepTables
from hetero_sglang.ops.flashinfer.plan_place import PlanPlace, float_bytes, int_words, item_count
from hetero_sglang.ops.flashinfer.split import SplitTables, place, split

if TYPE_CHECKING:
    from hetero_sglang.ops.step import DecodeStep


@dataclass(frozen=True)
class Width:
    """What a step of one batch width needs: FlashInfer's wrappers and their plans, and where heads go."""

    split: SplitTables
    resident: dict[int, Any]  # by number of resident heads: layers alike share a plan
    compressed: dict[int, Any]  # by layer
    order: torch.Tensor  # [layers, B * H] int64: rows (request, head) of q, resident heads' first
    back: torch.Tensor  # [layers, B * H] int64: its inverse


class FlashInferDecode(DecodeKernel):
    """For float16 and bfloat16 on a CUDA device; keys and values of one size."""

    def __init__(self, step: DecodeStep, layers: list[LayerBuffers]) -> None:
        self.layout, self.device, self.context = step.layout, step.tables.device, step.context
        self.slots, self.page_list, self.group = step.slots, step.tables.page_list, step.group
        hot = layers[0].hot_k
        self.page, self.dim, self.dtype, self.stored = hot.shape[1], hot.shape[2], step.dtype, hot.dtype
        if step.v_dim != self.dim:
            raise HeteroError(
                f"--hetero-decode-kernel flashinfer wants keys and values of one size, not {self.dim} and "
                f"{step.v_dim}; use --hetero-decode-kernel triton."
            )
        self.processors = torch.cuda.get_device_properties(self.device).multi_processor_count
        size = max(
            float_bytes(self._items(kv_heads, rows), kv_heads * self.group, self.dim)
            for _, _, kv_heads, rows in self._plans(step.batch)
        )
        self.workspace = torch.zeros(size, dtype=torch.uint8, device=self.device)  # of every run, one after the other
        self.widths: dict[int, Width] = {}
        self.now: Width | None = None

    def _plans(self, width: int) -> list[tuple[int, int, int, int]]:
        """Plans of a width: compressed heads per request (0: a plan of resident heads), number of the first,
        KV heads of a row, rows."""
        resident = sorted({len(x.resident) for x in self.layout.layers if x.resident})
        compressed = [(len(x.compressed), x.first) for x in self.layout.layers if x.compressed]
        return [(0, 0, r, width) for r in resident] + [(c, first, 1, width * c) for c, first in compressed]

    def _items(self, kv_heads: int, rows: int) -> int:
        return item_count(self.processors, kv_heads, rows, self.group)

    def prepare(self, width: int) -> None:
        if width and width not in self.widths:
            self.widths[width] = self._make(width)

    def _make(self, width: int) -> Width:
        plans = self._plans(width)
        most = max(rows for *_, rows in plans)
        ints = max(int_words(self._items(kv_heads, rows), rows) for _, _, kv_heads, rows in plans)
        size = -(-(ints + 2 * most + 1) // 4) * 4  # workspaces begin at multiples of 16 bytes
        words = torch.zeros(len(plans), size, dtype=torch.int32, device=self.device)
        wrappers, places = [], []
        for mine, (heads, first, kv_heads, rows) in zip(words, plans, strict=True):
            indptr, last = ints, ints + rows + 1
            wrapper = self._wrapper(
                mine[:ints], mine[indptr:last], mine[last : last + rows], kv_heads,
                *((self.page_list, self.page) if heads else (self.slots, 1)),
            )  # fmt: skip
            where = PlanPlace.read(wrapper._plan_info)
            # The plan sets as many as it has items now, later steps may have more.
            mine[where.query_tile : where.query_tile + where.items].zero_()
            wrappers.append(wrapper)
            places.append(place(self.page if heads else 1, heads, first, indptr, last, where))
        layers = self.layout.layers
        shared = {kv_heads: w for w, (heads, _, kv_heads, _) in zip(wrappers, plans, strict=True) if not heads}
        own = iter(wrappers[len(shared) :])
        order = torch.stack([self._order(layer, width) for layer in range(len(layers))])
        return Width(
            SplitTables(upload(torch.tensor(places, dtype=torch.int32), self.device), words, most),
            shared,
            {index: next(own) for index, layer in enumerate(layers) if layer.compressed},
            upload(order, self.device),
            upload(order.argsort(dim=1), self.device),
        )

    def _wrapper(
        self, space: torch.Tensor, indptr: torch.Tensor, last: torch.Tensor, kv_heads: int, lists: torch.Tensor,
        page: int,
    ) -> Any:  # fmt: skip
        """Planned for rows of one token, which fixes addresses and the grid; lengths come with each step."""
        from flashinfer import BatchDecodeWithPagedKVCacheWrapper

        rows = last.numel()
        wrapper = BatchDecodeWithPagedKVCacheWrapper(
            self.workspace, "NHD", use_cuda_graph=True, use_tensor_cores=True, paged_kv_indptr_buffer=indptr,
            paged_kv_indices_buffer=lists, paged_kv_last_page_len_buffer=last, backend="fa2",
        )  # fmt: skip
        # Its own is 8 MB, on the device and pinned; this one's pinned twin lives until the plan is copied and longer.
        wrapper.reset_workspace_buffer(self.workspace, space.view(torch.uint8))
        ones = torch.ones(rows, dtype=torch.int32)
        wrapper.plan(
            torch.arange(rows + 1, dtype=torch.int32), lists[:0], ones, kv_heads * self.group, kv_heads, self.dim, page,
            q_data_type=self.dtype, kv_data_type=self.stored, sm_scale=1.0,
        )  # fmt: skip
        return wrapper

    def _order(self, layer: int, width: int) -> torch.Tensor:
        spec = self.layout.layers[layer]
        heads = len(spec.resident) + len(spec.compressed)
        requests = torch.arange(width)[:, None] * heads  # [B, 1]
        return torch.cat([(requests + index).flatten() for index in (spec.resident_index, spec.compressed_index)])

    def plan(self, tables: StepTables) -> None:
        self.now = self.widths[tables.length.numel()]
        split(tables, self.now.split, self.context)

    def attend(
        self, layer: int, q: torch.Tensor, buffers: LayerBuffers, tables: StepTables, scale: float,
        ordered: bool = False, arrivals: Arrivals | None = None, drafts: Drafts | None = None,
    ) -> torch.Tensor:  # fmt: skip
        assert self.now is not None and drafts is None  # planned, and refused at start
        batch, query_heads, dim = q.shape
        now, group, resident = self.now, self.group, buffers.resident_k.shape[1]
        compressed = query_heads // group - resident
        q = q.reshape(-1, group * dim).index_select(0, now.order[layer])  # [B * H, G * D]
        out = torch.empty_like(q)
        cut = batch * resident
        if resident:
            shape = (batch, resident * group, dim)
            kv = (buffers.resident_k[:, None], buffers.resident_v[:, None])  # [rows, 1, R, D]
            now.resident[resident].run(q[:cut].view(shape), kv, q_scale=scale, out=out[:cut].view(shape))
        if compressed:
            shape = (batch * compressed, group, dim)
            kv = (buffers.hot_k[:, :, None], buffers.hot_v[:, :, None])  # [pages, P, 1, D]
            held = now.compressed[layer].run(
                q[cut:].view(shape), kv, q_scale=scale, out=out[cut:].view(shape), return_lse=arrivals is not None
            )
            if arrivals is not None:
                arrivals.there.hold(q.device)
                heads = arrivals.layer.which.long()
                mine, theirs, logs = (x.view(batch, compressed, group, -1)[:, heads].flatten(0, 1)
                                      for x in (q[cut:], held[0], held[1]))  # fmt: skip
                both = with_arrivals(theirs, logs, mine, arrivals, scale).unflatten(0, (batch, -1))
                out[cut:].view(batch, compressed, group, dim).index_copy_(1, heads, both.to(out.dtype))
        return out.index_select(0, now.back[layer]).view(batch, query_heads, dim)


def with_arrivals(
    out: torch.Tensor, logs: torch.Tensor, q: torch.Tensor, arrivals: Arrivals, scale: float
) -> torch.Tensor:
    """What units attend to, the rows in it that came meanwhile: out and q [units, G, D], and the base-2 logarithms
    [units, G, 1] of the sums of exponents that `out` is made of; float32 [units, G, D]."""
    units, work, run = len(out), arrivals.work, arrivals.layer.run
    each = work.limit(units, run) * run
    k, v = (x[: units * each].view(units, each, -1) for x in (work.arrived_k, work.arrived_v))
    here = torch.arange(each, device=q.device) < work.comes[:units, None] * run  # [units, each]
    logits = torch.einsum("ugd,und->ugn", q.float(), k.float()) * (scale * 1.4426950408889634)
    padding = logs < -1e4  # FlashInfer's, of nothing: -5e4
    logits = torch.cat((logs, torch.where(here[:, None], logits, float("-inf"))), 2)
    shares = torch.where(padding, 0.0, (logits * 0.6931471805599453).softmax(2))  # [units, G, 1 + each]
    values = torch.where(here[..., None], v.float(), 0.0)
    return out * shares[..., :1] + torch.einsum("ugn,und->ugd", shares[..., 1:], values)
