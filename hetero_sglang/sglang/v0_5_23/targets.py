"""Where SGLang 0.5.23 alone is hooked, and what is relied on."""

from hetero_sglang.sglang.interface import Seam

LAYER_BY_LAYER = False  # what is between two of them lies in the batch (residual_batch)
KEPT = "sglang.srt.managers.schedule_batch.Req.owned_kv_len"
_FIELDS = (  # flags; a new one may have to be refused
    "device.Device", "disagg.Disagg", "exec_.ExecComm", "exec_.ExecDeterministic", "exec_.ExecDllm",
    "exec_.ExecFeatures", "exec_.ExecGraph", "exec_.ExecKernel", "exec_.ExecMamba", "exec_.ExecMoe",
    "exec_.ExecOffload", "exec_.ExecOverlap", "lora.Lora", "memory.Memory", "mm.Mm", "model.Model",
    "observability.Observability", "parallel.Parallel", "schedule.Schedule", "serving.Serving", "spec.Spec",
)  # fmt: skip
RELIED_ON: tuple[str, ...] = (
    "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator.configure",
    *(f"sglang.srt.server_args.ServerArgs.{name}" for name in ("resolve_once", "__setattr__", "__reduce__")),
    *(f"sglang.srt.arg_groups.fields.{place}" for place in _FIELDS),
    "sglang.srt.arg_groups.memory_hook.handle_gpu_memory_settings",
    "sglang.srt.arg_groups.memory_hook.reserve_for_graph_mb",
    "sglang.srt.arg_groups.overrides.model_config_of",
    "sglang.srt.arg_groups.pipeline.run_resolution_pipeline",
    "sglang.srt.managers.schedule_batch.ReqKvInfo",
    "sglang.srt.mem_cache.allocator.base.BaseTokenToKVPoolAllocator.get_all_free_pages",
    "sglang.srt.mem_cache.allocator.paged.PagedTokenToKVPoolAllocator.get_all_free_pages",
    "sglang.srt.mem_cache.base_prefix_cache.MatchResult",
    "sglang.srt.mem_cache.common.match_kv_cache",
    "sglang.srt.mem_cache.common.release_kv_cache",
    "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.match_prefix",
    "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.total_size",
)


def seams() -> list[Seam]:
    return []
