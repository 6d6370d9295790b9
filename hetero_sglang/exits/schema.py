"""The JSON form of branches, version 1 (fields: docs/early-exit.md); their tensors lie in a file beside it."""

from collections.abc import Callable, Mapping
from reprlib import repr as shown  # a few words of a value of any size
from typing import Any

import torch

from hetero_sglang.errors import HeteroError
from hetero_sglang.exits.branch import Branch, shapes
from hetero_sglang.exits.exits import Exits
from hetero_sglang.exits.operating_point import OperatingPoint
from hetero_sglang.profile.json_file import is_number, is_whole, naming

FORMAT = "hetero-sglang exits"
VERSION = 1
MOST_BRANCHES = 1024
MOST_DIMENSIONS = 1 << 24  # of anything
_SIZES = ("layers", "hidden", "vocabulary")

Shapes = dict[str, tuple[int, ...]]
Tensors = Mapping[str, torch.Tensor]


def tensors(exits: Exits) -> dict[str, torch.Tensor]:
    """By their names in the file of tensors."""
    return {
        f"branches.{number}.{name}": tensor.contiguous()
        for number, branch in enumerate(exits.branches)
        for name, tensor in branch.tensors().items()
    }


def encode(exits: Exits, digest: str) -> dict[str, Any]:
    """The JSON object; `digest` is of the file of tensors."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": {name: getattr(exits, name) for name in _SIZES},
        "confidence": exits.confidence,
        "branches": [{"layer": b.layer, "kind": b.kind, "size": b.size, "eps": b.eps} for b in exits.branches],
        "calibration": [row.encode() for row in exits.calibration],
        "tensors": digest,
        "provenance": dict(exits.provenance),
    }


def decode(data: Mapping[str, Any], read: Callable[[str, Shapes], Tensors]) -> Exits:
    """The branches of a JSON object. `read` fetches tensors of these shapes by name from the file with this digest.

    Raises HeteroError naming the place that is wrong."""
    if data.get("format") != FORMAT:
        raise HeteroError(f'`format` is not "{FORMAT}"; give a file that `hetero-sglang exits train` wrote.')
    version = data.get("version")
    if not is_whole(version) or version != VERSION:
        raise HeteroError(f"`version` is {shown(version)} and this release reads {VERSION}; train the branches again.")
    model = _object(data.get("model"), "model")
    layers, hidden, vocabulary = (_size(model.get(name), f"model.{name}") for name in _SIZES)
    described = [_object(each, "branches") for each in _list(data.get("branches"), "branches", MOST_BRANCHES)]
    wanted: Shapes = {}
    for number, each in enumerate(described):
        with naming(f"branch {number}"):
            of_branch = shapes(str(each.get("kind")), hidden, vocabulary, _size(each.get("size"), "size"))
        wanted |= {f"branches.{number}.{name}": shape for name, shape in of_branch.items()}
    digest = data.get("tensors")
    if not isinstance(digest, str):
        raise HeteroError(f"`tensors` is {shown(digest)}; it must be the digest of the file of tensors.")
    found = read(digest, wanted)
    branches = []
    for number, each in enumerate(described):
        with naming(f"branch {number}"):
            prefix = f"branches.{number}."
            mine = {name.removeprefix(prefix): found[name] for name in wanted if name.startswith(prefix)}
            eps = _number(each.get("eps"), "eps")
            branches.append(Branch(_size(each.get("layer"), "layer"), vocabulary, eps, **mine))
    rows = _list(data.get("calibration"), "calibration", MOST_BRANCHES)
    points = tuple(_point(_object(row, "calibration")) for row in rows)
    provenance = _object(data.get("provenance", {}), "provenance")
    return Exits(layers, hidden, vocabulary, str(data.get("confidence")), tuple(branches), points, provenance)


def _point(row: Mapping[str, Any]) -> OperatingPoint:
    thresholds, share = (
        tuple(_number(each, f"calibration.{name}") for each in _list(row.get(name), f"calibration.{name}"))
        for name in ("thresholds", "share")
    )
    agreement, depth = (_number(row.get(name), f"calibration.{name}") for name in ("agreement", "depth"))
    return OperatingPoint(agreement, thresholds, depth, share)


def _object(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise HeteroError(f"`{place}` is or holds {shown(value)}; it must be an object.")
    return value


def _list(value: Any, place: str, most: int = MOST_BRANCHES + 1) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise HeteroError(f"`{place}` is {shown(value)}; it must be a list of at most {most}.")
    return value


def _size(value: Any, place: str) -> int:
    if not is_whole(value) or not 1 <= value <= MOST_DIMENSIONS:
        raise HeteroError(f"`{place}` is {shown(value)}; it must be a positive whole number.")
    return value


def _number(value: Any, place: str) -> float:
    if not is_number(value):
        raise HeteroError(f"`{place}` holds {shown(value)}; it must be a number.")
    return float(value)
