"""How fast this machine copies pinned memory to its card; in a process of its own, which leaves no memory behind."""

from __future__ import annotations

import subprocess
import sys

import torch

from benchmarks import copies

NBYTES = 1 << 30


def copied() -> float:
    """Bytes per second of a large pinned copy to the device. RuntimeError when it cannot be measured."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.bandwidth"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the copy bandwidth could not be measured: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.bandwidth measures copies to a GPU: PyTorch finds none here.")
    up, _ = copies.plain(torch.device("cuda", torch.cuda.current_device()), NBYTES)
    print(up.nbytes / up.seconds)
