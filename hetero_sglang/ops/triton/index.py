"""Key indexes on the device: new keys' codes, written where their tokens' slots are. Twin of ops/reference/index.py."""

import torch
import triton
import triton.language as tl

from hetero_sglang.profile.index_plan import WORD, Fields

MOST_FIELDS = 3


def flat_fields(fields: Fields) -> dict[str, int]:
    """Fields as the kernels take them: N0, B0, N1, B1, N2, B2, absent ones 0 directions of 1 bit."""
    padded = [*fields, *[(0, 1)] * (MOST_FIELDS - len(fields))]
    return {f"{name}{i}": value for i, pair in enumerate(padded) for name, value in zip("NB", pair, strict=True)}


@triton.jit
def _encode_field(
    keys, encode, offset, rows, here,
    D: tl.constexpr, R: tl.constexpr, FIRST: tl.constexpr, FIRST_WORD: tl.constexpr, N: tl.constexpr, B: tl.constexpr,
    PAD: tl.constexpr, WORD_BITS: tl.constexpr,
):  # fmt: skip
    """Codes of N directions in B bits of the keys that begin at keys [T], packed and stored at rows [T]."""
    way = tl.arange(0, PAD)
    real = way < N
    code = tl.zeros([keys.shape[0], PAD], tl.float32)
    for start in range(0, D, 32):
        at = start + tl.arange(0, 32)
        key = tl.load(keys[:, None] + at[None, :], mask=here[:, None] & (at < D)[None, :], other=0.0)
        both = (at < D)[:, None] & real[None, :]
        turn = tl.load(encode + at[:, None] * R + FIRST + way[None, :], mask=both, other=0.0)
        code = tl.dot(key.to(tl.float32), turn, code, input_precision="tf32x3")
    code = tl.floor(code - tl.load(offset + FIRST + way, mask=real, other=0.0)[None, :] + 0.5)
    code = tl.minimum(tl.maximum(code, 0.0), (1 << B) - 1.0).to(tl.int32)
    code = tl.where(real[None, :], code, 0) << ((way % (WORD_BITS // B)) * B)[None, :]
    packed = tl.sum(tl.reshape(code, [keys.shape[0], PAD * B // WORD_BITS, WORD_BITS // B]), 2)  # [T, words]
    word = tl.arange(0, PAD * B // WORD_BITS)
    where = rows[:, None] + FIRST_WORD + word[None, :]
    tl.store(where, packed.to(tl.int16), mask=here[:, None] & (word * (WORD_BITS // B) < N)[None, :])


@triton.jit(do_not_specialize=["n", "slots_in_all"])
def _index(
    k, slots, heads, store, encode, offset, n, k_stride, slots_in_all,
    D: tl.constexpr, R: tl.constexpr, WORDS: tl.constexpr, TOKENS: tl.constexpr,
    N0: tl.constexpr, B0: tl.constexpr, N1: tl.constexpr, B1: tl.constexpr, N2: tl.constexpr, B2: tl.constexpr,
    PAD0: tl.constexpr, PAD1: tl.constexpr, PAD2: tl.constexpr, WORD_BITS: tl.constexpr,
):  # fmt: skip
    compressed = tl.program_id(1)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    here = token < n
    keys = k + token.to(tl.int64) * k_stride + tl.load(heads + compressed) * D
    slot = tl.load(slots + token, mask=here, other=0).to(tl.int64)
    rows = store + (compressed.to(tl.int64) * slots_in_all + slot) * WORDS
    turn, shift = encode + compressed * D * R, offset + compressed * R
    _encode_field(keys, turn, shift, rows, here, D, R, 0, 0, N0, B0, PAD0, WORD_BITS)
    if N1 > 0:
        _encode_field(keys, turn, shift, rows, here, D, R, N0, N0 * B0 // WORD_BITS, N1, B1, PAD1, WORD_BITS)
    if N2 > 0:
        _encode_field(
            keys, turn, shift, rows, here, D, R, N0 + N1, (N0 * B0 + N1 * B1) // WORD_BITS, N2, B2, PAD2, WORD_BITS
        )


def pads(fields: Fields) -> dict[str, int]:
    """PAD0 to PAD2: each field's directions as a tile's width."""
    counts = [count for count, _ in fields] + [0] * (MOST_FIELDS - len(fields))
    return {f"PAD{i}": max(16, triton.next_power_of_2(count)) for i, count in enumerate(counts)}


def index(
    k: torch.Tensor, slots: torch.Tensor, heads: torch.Tensor, store: torch.Tensor, encode: torch.Tensor,
    offset: torch.Tensor, fields: Fields,
) -> None:  # fmt: skip
    """Write the index rows of keys k [n, H, D] at `slots` [n] of the layer's store int16 [C, slots, words].

    heads [C] int32: which of the H heads are compressed; encode [C, D, R], offset [C, R] float32."""
    n, _, dim = k.shape
    if n == 0 or heads.numel() == 0:
        return
    tokens = 16 if n <= 64 else 64
    _index[(triton.cdiv(n, tokens), heads.numel())](
        k, slots, heads, store, encode, offset, n, k.stride(0), store.shape[1],
        D=dim, R=encode.shape[2], WORDS=store.shape[2], TOKENS=tokens, WORD_BITS=WORD,
        **flat_fields(fields), **pads(fields), num_warps=4,
    )  # fmt: skip
