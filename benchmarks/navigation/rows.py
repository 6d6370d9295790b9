"""The rows of the benchmark: each adds to the one before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.quality.ratios import parse_ratios
from hetero_sglang.errors import HeteroError

from .layout import LAYOUTS, Layout
from .materials import Materials, narrow_bytes, weight_bytes

EXIT_FLAGS = ("hetero_early_exit", "hetero_exit_agreement", "hetero_early_exit_max_batch")
MAX_BATCH = 4  # what SGLang's users get


@dataclass(frozen=True)
class Row:
    """One server: what it serves, with which flags, and in which worlds it is played with."""

    name: str
    model: Path
    layers: int
    flags: dict[str, Any] = field(default_factory=dict)
    worlds: str = "corridor"
    adapter: Path | None = None
    stored: Path | None = None  # whose bytes the weights have on a device, where it is not `model`

    @property
    def layout(self) -> Layout:
        """Of its worlds."""
        return LAYOUTS[self.worlds]

    @property
    def request(self) -> dict[str, Any]:
        """More of each request."""
        return {"lora_path": "navigation"} if self.adapter else {}

    @property
    def weight_bytes(self) -> int:
        """Bytes of what it computes with, in 16 bits where it is not packed."""
        branches = self.flags.get(EXIT_FLAGS[0])
        more = [self.adapter] if self.adapter else []
        more += [Path(branches).with_suffix(".safetensors")] if branches else []
        return weight_bytes(self.stored or self.model) + sum(map(narrow_bytes, more))

    def server_flags(self) -> dict[str, Any]:
        """Of its server."""
        lora = {"lora_paths": [f"navigation={self.adapter}"]} if self.adapter else {}
        return {"kv_policy": "full", **self.flags, **lora}


@dataclass(frozen=True)
class Skipped:
    """A row that cannot be, and why."""

    name: str
    why: str


# A row that fails while it is made is skipped, and the others go on: each is made when its turn comes.
Made = tuple[str, Any]


def rows(materials: Materials, gpu: bool, agreement: float, ratios: list[str], at_once: int = 1) -> Iterator[Made]:
    """For so many episodes `at_once`: names, each with a function that gives its Row or its Skipped. Raises HeteroError
    where it cannot be."""
    packed, four = ("nf4", "4-bit") if gpu else ("numbers", "4-bit numbers")
    loads: dict[str, Any] = {"load_format": "bitsandbytes"} if gpu else {}

    def row(name: str, branch: Any = None, weights: str = packed, **more: Any) -> Row:
        stored = materials.checkpoint("nf4", branch) if weights == "numbers" else None
        flags = {**(loads if weights == "nf4" else {}), **more.pop("flags", {})}
        layers = materials.layers if branch is None else branch.layer
        return Row(name, materials.checkpoint(weights, branch), layers, flags, stored=stored, **more)

    def dynamic() -> dict[str, Any]:
        return dict(zip(EXIT_FLAGS, (materials.exits(packed), agreement, max(MAX_BATCH, at_once)), strict=True))

    def cached(word: str) -> dict[str, Any]:
        profile = materials.profile()
        (ratio,) = parse_ratios([word], str(profile.parent))
        return {"kv_policy": "heterocache", "hetero_keep_ratio": ratio, "hetero_profile": profile}

    yield "full precision", lambda name: row(name, weights="plain")
    if not gpu:
        yield "float32", lambda name: row(name, weights="plain", flags={"dtype": "float32"})
        why = "SGLang serves 4-bit weights on a GPU only; the row below has their numbers in 16 bits"
        yield "4-bit", lambda name: Skipped(name, why)
    yield four, row
    try:
        branches = materials.branches(packed)
    except HeteroError as error:
        said = str(error)
        yield f"{four}, static exit", lambda name: Skipped(name, said)
        branches = ()
    for each in branches:
        yield f"{four}, exit at layer {each.layer}", lambda name, each=each: row(name, each)
    yield f"{four}, dynamic exit", lambda name: row(name, flags=dynamic())
    for word in ratios:
        yield f"{four}, HeteroCache at {word}", lambda name, word=word: row(name, flags=cached(word))
        yield (
            f"{four}, dynamic exit, HeteroCache at {word}",
            lambda name, word=word: row(name, flags={**dynamic(), **cached(word)}),
        )
    other = "mirrored"
    yield f"full precision, {other} worlds", lambda name: row(name, weights="plain", worlds=other)
    yield f"{four}, {other} worlds", lambda name: row(name, worlds=other)
    if materials.adapter is None:
        yield f"{four} + QLoRA, {other} worlds", lambda name: Skipped(name, "no adapter was given (--adapter)")
        return
    tuned: dict[str, Any] = {"worlds": other, "adapter": materials.adapter}
    yield f"{four} + QLoRA, {other} worlds", lambda name: row(name, **tuned)
    for word in ratios:
        yield (
            f"{four} + QLoRA, dynamic exit of the model without it, HeteroCache at {word}, {other} worlds",
            lambda name, word=word: row(name, flags={**dynamic(), **cached(word)}, **tuned),
        )
