"""Allocators of mem_cache/allocator, and mem_cache/unified_radix_cache.py, which --disable-radix-cache has too."""

from typing import Any

import torch


def frees_now(allocator: Any) -> bool:
    return allocator.free_group is None


def free_pages(allocator: Any) -> torch.Tensor:
    pages: torch.Tensor = allocator.get_all_free_pages()
    return pages


def matched(tree: Any, req: Any, most: int) -> int:
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
    from sglang.srt.mem_cache.radix_cache import RadixKey

    ids, salt = req.full_untruncated_fill_ids, req.cache_salt
    key = RadixKey(token_ids=ids, extra_key=req.extra_key, cache_salt=salt, limit=most)
    return int(tree.match_prefix(MatchPrefixParams(key=key)).device_prefix_len)


def cached(tree: Any) -> int:
    slots, _ = tree.total_size()  # and states of Mamba's
    return int(slots)


def free_behind(req: Any, start: int, end: int, tree: Any) -> None:
    tree.free_kv_row(req.kv, [(start, end)])
