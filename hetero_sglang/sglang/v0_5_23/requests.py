"""A Req of managers/schedule_batch.py, whose `kv` says what it holds."""

from collections.abc import Hashable
from typing import Any

LEAKS_ADAPTERS = False


def begun(req: Any) -> bool:
    return req.kv.req_pool_idx is not None


def slot(req: Any) -> int:
    return int(req.kv.req_pool_idx)


def prefix(req: Any) -> int:
    return int(req.prefix_len)


def end(req: Any) -> int | None:
    return None if req.extend_end is None else int(req.extend_end)


def committed(req: Any) -> int:
    return int(req.kv.kv_committed_len)


def kept(req: Any) -> int:
    return int(req.owned_kv_len())


def salt(req: Any) -> Hashable:
    return req.extra_key, req.cache_salt
