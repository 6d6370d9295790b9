"""How servers side by side share the cores of a machine without an accelerator."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import torch

from hetero_sglang.cpu.defaults import FEW_CORES, thread_binding
from hetero_sglang.cpu.platform import accelerator_present, cpu_engine

_ASK = "import sys; from hetero_sglang.cpu.defaults import has_amx; sys.exit(0 if has_amx() else 3)"


def core_shares(jobs: int, ranks: int = 1) -> list[dict[str, str]]:
    """Environment of each of `jobs` servers with `ranks` ranks; nothing for one alone, or beside an accelerator."""
    if jobs == 1 or (accelerator_present() and not cpu_engine()):
        return [{} for _ in range(jobs)]
    cpus = sorted(os.sched_getaffinity(0))
    threads = max(1, len(cpus) // (jobs * ranks))
    share = {"OMP_NUM_THREADS": str(threads)}
    if threads <= FEW_CORES and "OMP_WAIT_POLICY" not in os.environ:
        share["OMP_WAIT_POLICY"] = "PASSIVE"  # the server itself looks at all the machine's cores
    if not sglang_binds():
        return [dict(share) for _ in range(jobs)]
    cores = thread_binding(cpus, jobs * ranks).split("|")
    own = (cores[job * ranks : (job + 1) * ranks] for job in range(jobs))
    return [{**share, "SGLANG_CPU_OMP_THREADS_BIND": "|".join(each)} for each in own]


def sglang_binds() -> bool:
    """Whether SGLang pins OpenMP's threads to cores, every server's to the same ones unless told otherwise
    (srt/distributed/bootstrap.py:172).

    Elsewhere it had better not be told: then it takes prefill chunks of 4096 tokens, whatever the memory
    (srt/utils/common.py:725, srt/server_args.py:4692), and a server alone would chunk otherwise.
    """
    if platform.machine().lower() in ("aarch64", "arm64"):
        return True
    if not torch.cpu._is_amx_tile_supported():
        return False
    # Elsewhere than here: importing sglang takes long, and changes the environment that servers inherit.
    return subprocess.run([sys.executable, "-c", _ASK], capture_output=True).returncode == 0
