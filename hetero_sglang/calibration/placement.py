"""Where a model's weights are while it is calibrated: on its device, or in host memory until their layer computes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("hetero_sglang")

ROOM = 4 << 30  # bytes of a device that are left for what layers compute


def put(model: PreTrainedModel, device: torch.device) -> None:
    """All on the device; where a GPU has not enough memory, decoder layers one by one. Raises OutOfMemoryError where
    a single one does not fit."""
    size = sum(each.nbytes for each in model.parameters())
    if device.type != "cuda" or size + ROOM <= torch.cuda.mem_get_info(device)[0]:
        model.to(device)
        return
    logger.warning(
        "The weights take %.1f GB, which %s has not free: its layers compute there one by one.", size / 1e9, device
    )
    in_turns(model, device)


def in_turns(model: PreTrainedModel, device: torch.device) -> None:
    """Each decoder layer comes to the device when it computes and leaves it afterwards; the rest stays there."""
    layers: Any = model.model.layers
    moving = {id(each) for each in _tensors(layers)}
    for each in _tensors(model):
        if id(each) not in moving:
            each.data = each.data.to(device)
    for layer in layers:
        at_home = [(each, each.data) for each in _tensors(layer)]
        layer.register_forward_pre_hook(lambda *_, at_home=at_home: _move(at_home, device))
        layer.register_forward_hook(lambda *_, at_home=at_home: _move(at_home, None))


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _move(at_home: list[tuple[torch.Tensor, torch.Tensor]], device: torch.device | None) -> None:
    """To the device, or back home, which none has left for good."""
    for each, home in at_home:
        each.data = home if device is None else home.to(device)
