"""Where SGLang 0.5.17 alone is hooked, and what is relied on."""

from hetero_sglang.cpu import paged
from hetero_sglang.sglang.interface import Seam

LAYER_BY_LAYER = True
KEPT = "sglang.srt.managers.schedule_batch.Req.effective_kv_committed_len"
RELIED_ON: tuple[str, ...] = (
    "sglang.kernels.jit.utils.load_jit",
    "sglang.kernels.ops.speculative.ngram_corpus.get_ngram_corpus_cls",
    "sglang.srt.layers.logits_processor.LogitsProcessor.forward",
    "sglang.srt.managers.scheduler.Scheduler._apply_war_barrier",
    "sglang.srt.mem_cache.base_prefix_cache.MatchPrefixParams",
    "sglang.srt.mem_cache.common.release_kv_cache",
    "sglang.srt.mem_cache.memory_pool.MHATokenToKVPool._init_kv_copy_and_warmup",
    "sglang.srt.mem_cache.memory_pool.MHATokenToKVPool.move_kv_cache",
    "sglang.srt.mem_cache.radix_cache.RadixCache.match_prefix",
    "sglang.srt.mem_cache.radix_cache.RadixCache.total_size",
    "sglang.srt.models.llama.LlamaDecoderLayer.forward",
    "sglang.srt.models.llama.LlamaModel.forward",
    "sglang.srt.models.qwen2.Qwen2DecoderLayer.forward",
    "sglang.srt.models.qwen2.Qwen2Model.forward",
    "sglang.srt.models.qwen3.Qwen3DecoderLayer.forward",
    "sglang.srt.server_args.ServerArgs.__post_init__",
    "sglang.srt.server_args.ServerArgs._handle_gpu_memory_settings",
    "sglang.srt.server_args.ServerArgs.get_model_config",
    "sglang.srt.server_args.ServerArgs.reserve_for_graph_mb",
    "sglang.srt.model_executor.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner.execute",
    "sglang.srt.model_executor.runner.decode_cuda_graph_runner.build_replay_fb_view",
    "sglang.srt.speculative.eagle_utils.eagle_prepare_for_decode",
    "sglang.srt.speculative.ngram_info.NgramVerifyInput",
    "sglang.srt.speculative.ngram_worker.NGRAMWorker._prepare_for_speculative_decoding",
    "sglang.srt.speculative.ngram_worker.NGRAMWorker.forward_batch_generation",
    "sglang.srt.speculative.spec_utils.move_accept_tokens_to_target_kvcache",
)


def seams() -> list[Seam]:
    return paged.seams()
