"""The operations in torch, on any device; they may wait for it."""

from hetero_sglang.ops.reference.append import append, keep
from hetero_sglang.ops.reference.attend import AttendStep
from hetero_sglang.ops.reference.choose import choose
from hetero_sglang.ops.reference.index import ask, index, probe
from hetero_sglang.ops.reference.lack import lack
from hetero_sglang.ops.reference.look import look
from hetero_sglang.ops.reference.store import copy_slots, fill, hold, locate, restore, store, write_back
from hetero_sglang.ops.reference.swap_in import bring, seat, swap_in
from hetero_sglang.ops.reference.workspace import Workspace

__all__ = [
    "AttendStep", "Workspace", "append", "ask", "bring", "choose", "copy_slots", "fill", "hold", "index", "keep",
    "lack", "locate", "look", "probe", "restore", "seat", "store", "swap_in", "write_back",
]  # fmt: skip
