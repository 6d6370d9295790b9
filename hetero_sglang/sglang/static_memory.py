"""How much of a GPU SGLang gives to weights and KV cache unless `--mem-fraction-static` says so."""

from hetero_sglang.sglang.interface import Memory
from hetero_sglang.sglang.version import installed

memory: Memory = installed("memory")


def static_fraction(gpu_mib: float, ranks: int = 1) -> float:
    """`--mem-fraction-static` as SGLang chooses it under our policies, which capture no prefill graphs."""
    found = next(((chunk, graph) for below, chunk, graph in memory.BY_MEMORY if gpu_mib < below), memory.LARGEST)
    chunk, graph = found
    if ranks >= 4:
        graph = memory.MANY_RANKS.get(graph, graph)
    reserved = 512 + 1.5 * chunk + ranks / 8 * 1024 + 2 * graph
    if gpu_mib > 60 << 10:
        reserved = max(reserved, 10 << 10)
    return round((gpu_mib - reserved) / gpu_mib, 3)
