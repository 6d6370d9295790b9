"""Allocators of mem_cache/allocator, and mem_cache/radix_cache.py."""

from typing import Any

import torch


def frees_now(allocator: Any) -> bool:
    return bool(allocator.is_not_in_free_group)


def free_pages(allocator: Any) -> torch.Tensor:
    return torch.cat((allocator.free_pages, allocator.release_pages))


def matched(tree: Any, req: Any, most: int) -> int:
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
    from sglang.srt.mem_cache.radix_cache import RadixKey

    key = RadixKey(token_ids=req.full_untruncated_fill_ids, extra_key=req.extra_key, limit=most)
    return len(tree.match_prefix(MatchPrefixParams(key=key)).device_indices)


def cached(tree: Any) -> int:
    from sglang.srt.mem_cache.chunk_cache import ChunkCache

    return 0 if isinstance(tree, ChunkCache) else tree.total_size()  # the former is what --disable-radix-cache takes


def free_behind(req: Any, start: int, end: int, tree: Any) -> None:
    behind = tree.req_to_token_pool.req_to_token[req.req_pool_idx][start:end]
    tree.token_to_kv_pool_allocator.free_segment(behind, start_pos=start)
