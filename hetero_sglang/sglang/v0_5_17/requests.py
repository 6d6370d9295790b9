"""A Req of managers/schedule_batch.py."""

from collections.abc import Hashable
from typing import Any

LEAKS_ADAPTERS = True


def begun(req: Any) -> bool:
    return req.req_pool_idx is not None


def slot(req: Any) -> int:
    return int(req.req_pool_idx)


def prefix(req: Any) -> int:
    return len(req.prefix_indices)


def end(req: Any) -> int | None:
    return None if req.extend_range is None else int(req.extend_range.end)


def committed(req: Any) -> int:
    return int(req.kv_committed_len)


def kept(req: Any) -> int:
    return int(req.effective_kv_committed_len())


def salt(req: Any) -> Hashable:
    found: str | None = req.extra_key
    return found
