"""FlashInfer's paged decode wrapper in torch: it reads plans, lists and lengths as the CUDA kernels do."""

from __future__ import annotations

from typing import Any

import torch

PROCESSORS = 6


def offsets(items: int, rows: int) -> tuple[list[int], int]:
    """What FlashInfer's `plan` returns (PrefillPlanImpl), and the bytes of its integer workspace."""
    end = 0

    def take(size: int, align: int = 16) -> int:
        nonlocal end
        start = -(-end // align) * align
        end = start + size
        return start

    request, tile, chunk_number = take(4 * items), take(4 * items), take(4 * items)
    outputs, chunk, total = take(4 * rows + 4), take(4, 1), take(4)
    merged, mask = take(4 * rows + 4), take(items)
    return [items, rows, total, 16, request, tile, chunk_number, merged, outputs, chunk, 0, 0, mask, 1, 1], end


class FakeWrapper:
    """The arguments that FlashInferDecode gives, and no others."""

    def __init__(
        self, workspace: torch.Tensor, layout: str, *, use_cuda_graph: bool, use_tensor_cores: bool, backend: str,
        paged_kv_indptr_buffer: torch.Tensor, paged_kv_indices_buffer: torch.Tensor,
        paged_kv_last_page_len_buffer: torch.Tensor,
    ) -> None:  # fmt: skip
        assert layout == "NHD" and use_cuda_graph and use_tensor_cores and backend == "fa2"
        self.indptr, self.indices = paged_kv_indptr_buffer, paged_kv_indices_buffer
        self.last = paged_kv_last_page_len_buffer

    def reset_workspace_buffer(self, workspace: torch.Tensor, ints: torch.Tensor) -> None:
        assert ints.dtype == torch.uint8 and ints.data_ptr() % 16 == 0
        self.ints = ints

    def plan(
        self, indptr: torch.Tensor, indices: torch.Tensor, last: torch.Tensor, query_heads: int, kv_heads: int,
        dim: int, page: int, *, q_data_type: torch.dtype, kv_data_type: torch.dtype, sm_scale: float,
    ) -> None:  # fmt: skip
        rows, group = len(last), query_heads // kv_heads
        items = max(2 * PROCESSORS // kv_heads, -(-rows * group // 16) + rows - 1)
        self._plan_info, size = offsets(items, rows)
        assert size <= self.ints.numel() and len(self.last) == rows == len(self.indptr) - 1
        self.ints[:size] = torch.randint(255, (size,), dtype=torch.uint8)  # what pinned memory held before
        self.indptr.copy_(indptr)
        self.last.copy_(last)
        self.scale, self.page, self.kv_heads = sm_scale, page, kv_heads

    def _words(self, place: int, count: int) -> list[int]:
        return self.ints[place : place + 4 * count].view(torch.int32).tolist()

    def run(
        self, q: torch.Tensor, kv: tuple[torch.Tensor, torch.Tensor], *, q_scale: float, out: torch.Tensor,
        return_lse: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """q [rows, kv_heads * G, D]; K, V [pages, page, kv_heads, D]. Base-2 logarithms of the sums, too."""
        info: list[Any] = self._plan_info
        items, rows = info[0], q.shape[0]
        request, tile, number = (self._words(info[i], items) for i in (4, 5, 6))
        merged, outputs = (self._words(info[i], rows + 1) for i in (7, 8))
        (chunk,) = self._words(info[9], 1)
        mask = self.ints[info[12] : info[12] + items].tolist()
        indptr, last, end = self.indptr.tolist(), self.last.tolist(), int(self.indptr[-1])
        keys, values = kv
        assert keys.shape[1:3] == (self.page, self.kv_heads) and out.shape == q.shape
        group = q.shape[1] // self.kv_heads
        parts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by place: output and log of the sum
        for item in range(items):
            if not mask[item]:
                continue
            row = request[item]
            assert tile[item] == 0
            length = 0
            if indptr[row + 1] != indptr[row]:
                length = ((indptr[row + 1] - indptr[row] - 1) * self.page + last[row]) % 2**32
            token = torch.arange(min(number[item] * chunk, length), min((number[item] + 1) * chunk, length))
            where = indptr[row] + token // self.page
            assert not len(where) or int(where.max()) < end
            pages = self.indices[where.long()].long()
            k, v = (x[pages, token % self.page].repeat_interleave(group, 1) for x in (keys, values))  # [n, Hq, D]
            logits = torch.einsum("hd,nhd->hn", q[row], k) * self.scale * q_scale
            part = torch.einsum("hn,nhd->hd", logits.softmax(-1), v) if len(token) else torch.zeros_like(q[row])
            parts[outputs[row] + number[item]] = (part, logits.logsumexp(-1))
        logs = torch.empty(q.shape[:2])
        for row in range(rows):
            mine = [parts[place] for place in range(merged[row], merged[row + 1])]
            logs[row] = torch.stack([log for _, log in mine]).logsumexp(0) / 0.6931471805599453
            if len(mine) == 1:
                out[row] = mine[0][0]
                continue
            shares = torch.stack([log for _, log in mine]).softmax(0)  # [chunks, Hq]
            out[row] = (torch.stack([part for part, _ in mine]) * shares[..., None]).sum(0)
        return out, logs
