"""Index rows made by the kernel are the reference's."""

from __future__ import annotations

import pytest
import torch

from hetero_sglang.ops.reference.index import encode_keys, unpack
from hetero_sglang.ops.triton.index import index
from hetero_sglang.profile.index_plan import Fields, words

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PLANS = [((8, 4), (24, 2)), ((8, 4), (16, 2), (16, 1)), ((16, 1),), ((16, 2), (16, 1))]


def random_index(fields: Fields, heads: int, dim: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """encode [C, D, R], offset [C, R] float32 whose codes use their bits."""
    directions = sum(count for count, _ in fields)
    levels = torch.cat([torch.full((count,), 2.0**bits - 1) for count, bits in fields])
    encode = torch.randn(heads, dim, directions, generator=generator) * levels / 4 / dim**0.5
    return encode, (-levels / 2).expand(heads, -1).contiguous()


@pytest.mark.parametrize("fields", PLANS)
@pytest.mark.parametrize(("n", "dim"), [(3, 64), (70, 32), (1, 128)])
def test_codes_and_their_places(fields: Fields, n: int, dim: int) -> None:
    """Also of keys that are slices of wider rows; nothing else of the store is touched."""
    generator = torch.Generator().manual_seed(n)
    heads, slots_in_all, total = torch.tensor([0, 2, 3], dtype=torch.int32), 200, 5
    encode, offset = random_index(fields, 3, dim, generator)
    rows = torch.randn(n, 2 * total, dim, generator=generator)
    k = rows[:, total:]
    slots = torch.randperm(slots_in_all, generator=generator)[:n].int()
    store = torch.full((3, slots_in_all, words(fields)), 12345, dtype=torch.int16)
    wanted = store.clone()
    made = encode_keys(k[:, heads.long()], encode, offset, fields)
    wanted[:, slots.long()] = made
    ours = store.to(DEVICE)
    args = (heads, ours, encode, offset)
    index(rows.to(DEVICE)[:, total:], slots.to(DEVICE), *(t.to(DEVICE) for t in args), fields)
    ours = ours.cpu()
    untouched = torch.ones(slots_in_all, dtype=torch.bool).index_fill(0, slots.long(), False)
    assert torch.equal(ours[:, untouched], store[:, untouched])
    got, want = (unpack(t[:, slots.long()], fields) for t in (ours, wanted))
    exact = torch.bmm(k[:, heads.long()].transpose(0, 1), encode) - offset[:, None]
    tie = ((exact - exact.floor()) - 0.5).abs() < 1e-3
    assert torch.equal(got[~tie], want[~tie]) and (got - want).abs().max() <= 1
