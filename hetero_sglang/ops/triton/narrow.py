"""Twin of cache/narrow.py: numbers that go to stores of 8 bits are bounded by what these can hold."""

import triton
import triton.language as tl


@triton.jit
def narrowed(values, MOST: tl.constexpr):
    """`values`, between -MOST and MOST where MOST is not 0; to be stored, which rounds them."""
    if MOST > 0:
        values = tl.minimum(tl.maximum(values.to(tl.float32), -MOST), MOST)
    return values
