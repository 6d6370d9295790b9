"""Checkpoints that end at a layer: a static exit, served as any model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.weights.quantise import TOKENIZER
from hetero_sglang.errors import HeteroError

_LAYERS = "model.layers."


def truncate(
    model: Path, layers: int, out: Path, norm: torch.Tensor | None = None, head: torch.Tensor | None = None
) -> Path:
    """`out` with the first `layers` layers of the checkpoint, and a norm [H] and head [V, H] in place of its own.

    Raises HeteroError for a number of layers that it does not have, and for tensors of another shape.
    """
    config = json.loads((model / "config.json").read_text())
    if not 1 <= layers <= config["num_hidden_layers"]:
        raise HeteroError(
            f"{layers} layers of {model.name} were asked for: it has {config['num_hidden_layers']}; pass 1 to that."
        )
    weights = {
        name: each
        for name, each in load_file(model / "model.safetensors").items()
        if not name.startswith(_LAYERS) or int(name.removeprefix(_LAYERS).split(".")[0]) < layers
    }
    for name, own in (("model.norm.weight", norm), ("lm_head.weight", head)):
        if own is not None:
            if own.shape != weights[name].shape:
                raise HeteroError(
                    f"A tensor of {list(own.shape)} cannot stand for {name} of {list(weights[name].shape)}: pass a "
                    "branch of this model."
                )
            weights[name] = own.to(weights[name].dtype).contiguous()
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}, indent=1))
    for each in TOKENIZER:
        if (model / each).exists():
            shutil.copy(model / each, out / each)
    return out


def static_exit(model: Path, branch: Any, out: Path) -> Path:
    """The checkpoint that leaves at a branch of `hetero_sglang.exits` always.

    A branch that adapts the model's own head becomes one head: W (h + U D h) = (W + W U D) h. Raises HeteroError as
    `truncate`, and for a branch that knows some of the words only.
    """
    own = load_file(model / "model.safetensors")["lm_head.weight"].float()  # [V, H]
    if branch.tokens is not None:
        raise HeteroError(
            f"The branch behind layer {branch.layer} knows {len(branch.tokens)} of {len(own)} words, and the head of "
            "a checkpoint has no way to leave the others out: train a branch of another kind."
        )
    eps = json.loads((model / "config.json").read_text())["rms_norm_eps"]
    if branch.eps != eps:
        raise HeteroError(
            f"The norm of the branch behind layer {branch.layer} has eps {branch.eps:g} and the model's have {eps:g}, "
            "and a checkpoint has one for all: train the branch with the model's."
        )
    head = branch.head if branch.head is not None else own + own @ branch.up.float() @ branch.down.float()
    return truncate(model, branch.layer, out, branch.norm, head)
