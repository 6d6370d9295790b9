"""The header of a safetensors file: what each tensor is, without its numbers."""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

_MOST_BYTES = 100_000_000  # what safetensors itself reads


def read_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The tensors by name in a file of `size` bytes, and where their bytes begin. Raises ValueError or struct.error
    for what is no whole header."""
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(size - 8, _MOST_BYTES):
        raise ValueError(f"its header claims {length} bytes of {size}")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"its header is a {type(header).__name__}")
    header.pop("__metadata__", None)
    return header, 8 + length
