"""The operations as kernels that wait for nothing and run in CUDA graphs."""

from hetero_sglang.ops.triton.append import append, keep
from hetero_sglang.ops.triton.ask import ask
from hetero_sglang.ops.triton.attend import AttendStep
from hetero_sglang.ops.triton.choose import choose
from hetero_sglang.ops.triton.fill import fill, hold, restore
from hetero_sglang.ops.triton.index import index
from hetero_sglang.ops.triton.lack import lack
from hetero_sglang.ops.triton.look import look
from hetero_sglang.ops.triton.probe import probe
from hetero_sglang.ops.triton.slots import copy_slots
from hetero_sglang.ops.triton.store import store
from hetero_sglang.ops.triton.swap_in import bring, seat, swap_in
from hetero_sglang.ops.triton.workspace import Workspace
from hetero_sglang.ops.triton.write_back import locate, write_back

__all__ = [
    "AttendStep", "Workspace", "append", "ask", "bring", "choose", "copy_slots", "fill", "hold", "index", "keep",
    "lack", "locate", "look", "probe", "restore", "seat", "store", "swap_in", "write_back",
]  # fmt: skip
