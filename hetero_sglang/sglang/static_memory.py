"""How much of a GPU SGLang gives to weights and KV cache unless `--mem-fraction-static` says so."""

# GPU memory below which SGLang takes these chunks of a prefill and largest CUDA graphs, MiB; the last for all larger
_BY_MEMORY = ((20 << 10, 2048, 8), (35 << 10, 2048, 24), (60 << 10, 4096, 32), (160 << 10, 8192, 256))
_LARGEST = (16384, 512)
_MANY_RANKS = {24: 80, 32: 160, 256: 512}  # the largest graph from four ranks on


def static_fraction(gpu_mib: float, ranks: int = 1) -> float:
    """`--mem-fraction-static` as SGLang 0.5.17 chooses it under our policies, which capture no prefill graphs
    (server_args.py, `_handle_gpu_memory_settings`)."""
    found = next(((chunk, graph) for below, chunk, graph in _BY_MEMORY if gpu_mib < below), _LARGEST)
    chunk, graph = found
    if ranks >= 4:
        graph = _MANY_RANKS.get(graph, graph)
    reserved = 512 + 1.5 * chunk + ranks / 8 * 1024 + 2 * graph
    if gpu_mib > 60 << 10:
        reserved = max(reserved, 10 << 10)
    return round((gpu_mib - reserved) / gpu_mib, 3)
