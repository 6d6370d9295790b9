"""Twin of cache/narrow.py: numbers that go to stores of 8 bits are bounded by what these can hold."""

import torch
import triton
import triton.language as tl

_TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


def computed(queries: torch.dtype, stored: torch.dtype) -> tl.dtype:
    """What queries are multiplied as with rows of the stores: one instruction makes two half-precision numbers of two
    of 8 bits, and several make one bfloat16, which takes longer than to read it."""
    half = stored.itemsize == 1 and queries is torch.bfloat16
    return tl.float16 if half else _TYPES[queries]


@triton.jit
def narrowed(values, MOST: tl.constexpr):
    """`values`, between -MOST and MOST where MOST is not 0; to be stored, which rounds them."""
    if MOST > 0:
        values = tl.minimum(tl.maximum(values.to(tl.float32), -MOST), MOST)
    return values
