"""Numbers as the stores hold them: SGLang's --kv-cache-dtype, or as the model makes them."""

import torch


def narrowed(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`values` in the stores' `dtype`, to the nearest; what 8 bits cannot reach becomes the most that they can."""
    if dtype.itemsize > 1:
        return values.to(dtype)
    most = torch.finfo(dtype).max
    return values.clamp(-most, most).to(dtype)


def largest(dtype: torch.dtype) -> float:
    """What kernels bound numbers by before they store them as `dtype`; 0: nothing is to be bounded."""
    return torch.finfo(dtype).max if dtype.itemsize == 1 else 0.0
