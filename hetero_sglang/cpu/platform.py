"""The `sglang.srt.platforms` entry point: chooses SGLang's CPU engine where there is no GPU.

SGLang calls it during `import sglang`, in every process, before anything reads the engine choice
(srt/platforms/__init__.py:109). It must therefore import nothing of sglang and must not initialise CUDA."""

import glob
import importlib
import importlib.util
import os
import sys

from hetero_sglang.cpu import sgl_kernel_stub

ENGINE_VARIABLE = "SGLANG_USE_CPU_ENGINE"
# Beside a choice of ours, so that a child process that does get a GPU chooses again.
CHOICE_VARIABLE = "HETERO_CHOSE_CPU_ENGINE"
# What an NVIDIA driver leaves: a card's node, the control node, Jetson's built-in GPU, the library of WSL 2.
NVIDIA_NODES = (
    "/dev/nvidia[0-9]*",
    "/dev/nvidiactl",
    "/dev/nvhost-gpu",
    "/dev/nvgpu",
    "/usr/lib/wsl/lib/libcuda.so.1",
)
# Packages that give torch another vendor's device (Ascend, Gaudi, Moore Threads).
OTHER_VENDORS = ("torch_npu", "habana_frameworks", "torch_musa")


def activate() -> None:
    """Sets `SGLANG_USE_CPU_ENGINE=1` where no accelerator is found, unless the variable is already set, and
    puts in the stand-in for `sgl_kernel` where the engine is the CPU and the real package does not load.

    Returns None always: to SGLang that means "no platform of mine", so its own choice stands."""
    ours = cpu_engine() and CHOICE_VARIABLE in os.environ
    if ours or ENGINE_VARIABLE not in os.environ:
        _choose()
    if cpu_engine() and not _sgl_kernel_loads():
        sgl_kernel_stub.install()


def cpu_engine() -> bool:
    """Whether SGLang runs, or will run, on its CPU engine."""
    return os.environ.get(ENGINE_VARIABLE) == "1"


def accelerator_present() -> bool:
    """Whether SGLang should be left to find an accelerator by itself; in doubt yes, for a GPU machine must
    not serve on its CPU unasked. Looks at files and at torch's build, never at the driver."""
    if sys.platform != "linux" or any(importlib.util.find_spec(name) for name in OTHER_VENDORS):
        return True
    build = getattr(sys.modules.get("torch"), "version", None)  # absent only when called outside sglang
    if getattr(build, "hip", None) or getattr(build, "xpu", None):
        return True
    if build is not None and build.cuda is None:  # a CPU build of torch cannot use a card
        return False
    return not _cards_hidden() and any(glob.glob(node) for node in NVIDIA_NODES)


def _choose() -> None:
    if accelerator_present():
        os.environ.pop(ENGINE_VARIABLE, None)
        os.environ.pop(CHOICE_VARIABLE, None)
    else:
        os.environ.update({ENGINE_VARIABLE: "1", CHOICE_VARIABLE: "1"})  # spawned schedulers inherit both


def _cards_hidden() -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides every card: CUDA stops at the first entry that names none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return False
    first = visible.split(",")[0].strip()
    return not (first.isdecimal() or first.startswith(("GPU-", "MIG-")))


def _sgl_kernel_loads() -> bool:
    if "sgl_kernel" in sys.modules:
        return True
    try:
        importlib.import_module("sgl_kernel")
        return True
    except Exception:  # a CUDA build raises whatever its loader meets without a driver
        for name in [name for name in sys.modules if name.startswith("sgl_kernel.")]:
            del sys.modules[name]  # else `import sgl_kernel.utils` would find half of the real package
        return False
