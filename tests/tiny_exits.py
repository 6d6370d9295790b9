"""Branches of the recall model that nobody would mistake for it: they know two words that no text has, and no other."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

from safetensors import safe_open

from benchmarks.blind_branches import MARKS, write_branches
from benchmarks.launch import RECALL
from hetero_sglang.exits.branch import Branch
from hetero_sglang.exits.exits import Exits
from hetero_sglang.exits.files import EXITS_NAME, save
from hetero_sglang.exits.operating_point import OperatingPoint

LAYERS = (2, 5)


def write_exits(folder: Path, layers: tuple[int, ...] = LAYERS, threshold: float = 0.5) -> Path:
    """Branches behind `layers`, which let tokens go at `threshold` unless agreement 1 is asked for."""
    config = json.loads((RECALL / "config.json").read_text())
    return write_branches(folder / EXITS_NAME, config, layers, MARKS, threshold, others=-1e4)


def write_lens(folder: Path, layer: int = 7) -> Path:
    """A branch near the end, with the model's own norm and head: often right."""
    config = json.loads((RECALL / "config.json").read_text())
    with safe_open(RECALL / "model.safetensors", "pt") as model:
        norm, head = (model.get_tensor(name).float() for name in ("model.norm.weight", "lm_head.weight"))
    words, depth = config["vocab_size"], config["num_hidden_layers"]
    branch = Branch(layer, words, config["rms_norm_eps"], norm, head=head)
    points = (OperatingPoint(0.9, (0.9,), depth, (0.0, 1.0)), OperatingPoint(1.0, (1.0,), depth, (0.0, 1.0)))
    folder.mkdir(parents=True, exist_ok=True)
    save(Exits(depth, config["hidden_size"], words, "probability", (branch,), points), folder / EXITS_NAME)
    return folder / EXITS_NAME


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Gone when the tests are."""
    made = tempfile.TemporaryDirectory(prefix="hetero-exits-")
    write_exits(Path(made.name))
    write_lens(Path(made.name, "lens"))
    return made


def exits_file() -> str:
    """For --hetero-early-exit."""
    return str(Path(_folder().name, EXITS_NAME))


def lens_file() -> str:
    """The same, of a branch that is often right."""
    return str(Path(_folder().name, "lens", EXITS_NAME))
