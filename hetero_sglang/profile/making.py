"""Making a head profile of a checkpoint: documents, measurement, roles, provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.calibrate import Plan
from hetero_sglang.profile.checkpoint import Checkpoint, Shape, tokenizer_hash
from hetero_sglang.profile.clusters import heads_per_rank
from hetero_sglang.profile.documents import Document, built_in, from_file
from hetero_sglang.profile.fingerprint import fingerprint
from hetero_sglang.profile.head_profile import HeadProfile
from hetero_sglang.profile.measurements import Measurements
from hetero_sglang.profile.thresholds import Thresholds, classify

DEFAULT_LENGTHS = (2048, 4096)


@dataclass(frozen=True)
class Source:
    """Where calibration text comes from: `files`, else `count` built-in documents of consecutive seeds."""

    files: tuple[str, ...] = ()
    lengths: tuple[int, ...] | None = None
    count: int = 8
    seed: int = 0

    def documents(self, checkpoint: Checkpoint, shape: Shape, steps: int) -> list[Document]:
        """Raises HeteroError for unusable files and for lengths beyond the model's context."""
        room = shape.max_length - steps
        wanted = self.lengths or tuple(sorted({min(n, room) for n in DEFAULT_LENGTHS}))
        for length in wanted:
            if not 0 < length <= room:
                raise HeteroError(
                    f"`--length` is {length}; with {steps} decode steps this model takes between 1 and {room} tokens."
                )
        encode, start = checkpoint.encode, checkpoint.start
        if self.files:
            return [d for path in self.files for d in from_file(path, list(wanted), encode, start)]
        if self.count < 1:
            raise HeteroError(f"`--documents` is {self.count}; choose at least 1.")
        return [built_in(self.seed + i, wanted[i % len(wanted)], encode, start) for i in range(self.count)]


def describe_source(
    model_path: str | Path, checkpoint: Checkpoint, documents: Sequence[Document], plan: Plan
) -> dict[str, Any]:
    """What a measurement was made from; no dates, so that the same run gives the same file."""
    return {
        "model": Path(model_path).resolve().name,
        "fingerprint": fingerprint(model_path),
        "tokenizer": tokenizer_hash(model_path),
        "texts": [
            {"source": d.source, "sha256": d.sha256, "tokens": len(d.tokens), "topk": plan.topk.of(d)}
            for d in documents
        ],
        "steps": plan.steps,
        "window": plan.observation.window,
        "pooling": plan.observation.pooling,
        "gqa_reduction": plan.observation.reduction,
        "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
        "device": checkpoint.device.type,
        "versions": {name: _version(name) for name in ("hetero-sglang", "torch", "transformers")},
    }


def assign_roles(
    shape: Shape,
    measured: Measurements,
    thresholds: Thresholds,
    ranks: int | None,
    source: dict[str, Any],
    target: float | None = None,
) -> HeadProfile:
    """The profile at the given thresholds; `target` is the keep ratio they were chosen for, if any."""
    layers = classify(measured, thresholds, heads_per_rank(shape.num_kv_heads, ranks))
    provenance = source | {
        "tau_stable": thresholds.stable,
        "tau_sim": thresholds.similar,
        "target_keep_ratio": target,
        "per_rank": ranks,
    }
    return HeadProfile(
        shape.num_layers, shape.num_kv_heads, shape.num_query_heads, shape.head_dim, layers, provenance, measured
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"

