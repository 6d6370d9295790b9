"""Sizes of the matrix."""

from __future__ import annotations

from dataclasses import dataclass

from hetero_sglang.config.choices import POLICIES

# HeteroCache twice: by pivots, as in the paper, and by the profile's key index.
HETEROCACHE = ("heterocache:index=none:roles=ratio", "heterocache:index=directions")
VARIANTS = ("full", *HETEROCACHE, *(name for name in POLICIES if name not in ("full", "heterocache")))


@dataclass(frozen=True)
class Preset:
    """What runs where the command line says nothing else."""

    lengths: tuple[int, ...]
    seeds: tuple[int, ...]
    reduced: bool  # each task's reduced points
    policies: tuple[str, ...] = VARIANTS
    ratios: tuple[str, ...] = ("floor+0.02", "0.3", "0.5", "0.75")


FULL_SIZE = Preset(lengths=(3072, 4096, 8192, 16384, 32768), seeds=(0, 1, 2), reduced=False)
REDUCED = Preset(lengths=(3072,), seeds=(0,), reduced=True)  # under an hour on two CPU cores

# Lengths from 3K on are compressed; a smaller limit leaves the shipped profile no room for window and sink at
# floor+0.02, and a shorter window loses what counts an answer's entries, in every policy that has no index.
SERVER_FLAGS = "--hetero-dense-below 2944"
