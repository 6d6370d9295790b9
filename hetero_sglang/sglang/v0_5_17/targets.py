"""Where SGLang 0.5.17 alone is hooked, and what is relied on."""

from hetero_sglang.cpu import paged
from hetero_sglang.sglang.interface import Seam

RELIED_ON: tuple[str, ...] = (
    "sglang.srt.managers.schedule_batch.Req.effective_kv_committed_len",
    "sglang.srt.mem_cache.base_prefix_cache.MatchPrefixParams",
    "sglang.srt.mem_cache.common.release_kv_cache",
    "sglang.srt.mem_cache.radix_cache.RadixCache.match_prefix",
    "sglang.srt.mem_cache.radix_cache.RadixCache.total_size",
    "sglang.srt.server_args.ServerArgs.__post_init__",
    "sglang.srt.server_args.ServerArgs._handle_gpu_memory_settings",
    "sglang.srt.server_args.ServerArgs.get_model_config",
    "sglang.srt.server_args.ServerArgs.reserve_for_graph_mb",
)


def seams() -> list[Seam]:
    return paged.seams()
