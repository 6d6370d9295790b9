"""Token slots of a batch, copied out of SGLang's req_to_token so that a graph replay reads memory of ours alone."""

import torch
import triton
import triton.language as tl


@triton.jit
def _copy_slots(req_to_token, requests, length, starts, out, stride, BLOCK: tl.constexpr):
    index = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = at < tl.load(length + index)
    row = tl.load(requests + index).to(tl.int64)
    slots = tl.load(req_to_token + row * stride + at, mask=here)
    tl.store(out + tl.load(starts + index) + at, slots, mask=here)


def copy_slots(
    req_to_token: torch.Tensor,
    requests: torch.Tensor,
    length: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    out: torch.Tensor,
) -> None:
    """out[starts[b] + t] = req_to_token[requests[b], t] for t < length[b] <= longest; int32 but for `requests`."""
    block = 2048
    if requests.numel() and longest:
        grid = (requests.numel(), triton.cdiv(longest, block))
        _copy_slots[grid](req_to_token, requests, length, starts, out, req_to_token.stride(0), BLOCK=block)
