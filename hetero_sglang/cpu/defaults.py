"""Server settings under which plain SGLang is usable on a CPU: what its own defaults get wrong."""

import json
import logging
import os
from reprlib import repr as shown
from typing import Any

from hetero_sglang.cpu import platform
from hetero_sglang.errors import HeteroError

logger = logging.getLogger(__name__)

# A CPU pool is zeroed as it is allocated, and SGLang sizes it from the host's memory, container or not: its
# default touches three quarters of the machine before the first request.
MAX_TOTAL_TOKENS = 131072
# SGLang reserves room for a GPU's activations; without chunked prefill that is more than a small machine has.
MEM_FRACTION = 0.7
# torch_native walks the batch request by request; SGLang's 2048 rows of req_to_token would only cost memory.
MAX_RUNNING_REQUESTS = 64
# On so few cores a server's own processes crowd each other, and OpenMP's threads must not spin while they wait:
# measured on two crowded cores, a decode step of a small model took 50 ms spinning and 6 ms sleeping.
FEW_CORES = 4
# Names and values of the variables that `export` has set.
EXPORTED = "HETERO_CPU_ENVIRONMENT"


def apply_cpu_defaults(server_args: Any) -> None:
    """Fills what the user left open in `server_args`, and the environment its schedulers inherit, where the
    engine is the CPU; does nothing elsewhere. Call it before SGLang settles its own."""
    if not platform.cpu_engine() or server_args.device not in (None, "cpu"):
        return
    if server_args.attention_backend is None and not has_amx():
        server_args.attention_backend = "torch_native"
    if server_args.max_total_tokens is None and server_args.mem_fraction_static is None:
        server_args.max_total_tokens = cap = max(MAX_TOTAL_TOKENS, server_args.context_length or 0)
        logger.info("KV cache capped at %d tokens on the CPU; --max-total-tokens sets another cap", cap)
    if server_args.mem_fraction_static is None:
        server_args.mem_fraction_static = MEM_FRACTION
    if server_args.max_running_requests is None:
        server_args.max_running_requests = MAX_RUNNING_REQUESTS * server_args.dp_size
    cpus = sorted(os.sched_getaffinity(0))
    export(environment(cpus, server_args.tp_size, compiles=server_args.enable_torch_compile))


def environment(cpus: list[int], tp_size: int, *, compiles: bool) -> dict[str, str]:
    """Variables for the schedulers of a server with `tp_size` ranks on `cpus`.

    Compilation is off unless asked for: the sampler's few compiled helpers (repetition_penalty.py:9,
    sampler.py:683) cost 10 to 30 s at first use, and the scheduler its life where there is no C++ compiler."""
    variables = {} if compiles else {"TORCH_COMPILE_DISABLE": "1"}
    if len(cpus) <= FEW_CORES:
        variables["OMP_WAIT_POLICY"] = "PASSIVE"
    if tp_size > 1:
        variables["SGLANG_CPU_OMP_THREADS_BIND"] = thread_binding(cpus, tp_size)
        # Ranks talk over gloo; NCCL loads without a driver, then fails (device_communicators/pynccl.py:108).
        variables["SGLANG_NCCL_SO_PATH"] = os.devnull
    return variables


def export(variables: dict[str, str]) -> None:
    """Puts `variables` into the environment beside what the user set there; what an earlier call put there, in
    this process or a parent, is taken back first, for the next server may have other ranks.

    Raises HeteroError where EXPORTED holds what `export` never writes."""
    for name, value in _exported(os.environ.get(EXPORTED, "{}")).items():
        if os.environ.get(name) == value:
            del os.environ[name]
    ours = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update({**ours, EXPORTED: json.dumps(ours)})


def _exported(text: str) -> dict[str, str]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise HeteroError(f"{EXPORTED} is set to {shown(text)}, which is not from hetero_sglang; unset it.")
    return found


def thread_binding(cpus: list[int], tp_size: int) -> str:
    """`cpus` shared out among `tp_size` ranks in SGLang's notation, "0,1|2,3"; ranks double up where cores
    are few. Left to itself SGLang refuses more ranks than NUMA nodes (srt/utils/numa_utils.py:441)."""
    share = max(1, len(cpus) // tp_size)
    ranks = [[cpus[(rank * share + i) % len(cpus)] for i in range(share)] for rank in range(tp_size)]
    return "|".join(",".join(map(str, rank)) for rank in ranks)


def has_amx() -> bool:
    """Whether SGLang's own CPU kernels are usable: an AMX machine with a CPU build of sgl_kernel."""
    from sglang.srt.utils.common import cpu_has_amx_support

    return cpu_has_amx_support()
