"""What a head profile was made from, as written into it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetero_sglang.calibration.checkpoint import Checkpoint, tokenizer_hash
from hetero_sglang.calibration.documents import Document
from hetero_sglang.calibration.role_options import RoleOptions
from hetero_sglang.profile.fingerprint import fingerprint
from hetero_sglang.profile.thresholds import Thresholds

if TYPE_CHECKING:
    from hetero_sglang.calibration.calibrate import Plan


def of_measurement(
    model_path: str | Path, checkpoint: Checkpoint, documents: Sequence[Document], plan: Plan
) -> dict[str, Any]:
    """Model, texts and settings; no dates, so that the same run gives the same file."""
    return {
        "model": Path(model_path).resolve().name,
        "fingerprint": fingerprint(model_path),
        "tokenizer": tokenizer_hash(model_path),
        "texts": [
            {"source": d.source, "sha256": d.sha256, "tokens": len(d.tokens), "topk": plan.topk.of(d)}
            for d in documents
        ],
        "steps": plan.steps,
        "smoothing": plan.smoothing,
        "measure": plan.measure,
        "window": plan.observation.window,
        "pooling": plan.observation.pooling,
        "gqa_reduction": plan.observation.reduction,
        "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
        "device": checkpoint.device.type,
        "versions": {name: _version(name) for name in ("hetero-sglang", "torch", "transformers")},
    }


def of_decision(thresholds: Thresholds, options: RoleOptions) -> dict[str, Any]:
    """How roles were decided from the measurement."""
    return {
        "tau_stable": thresholds.stable,
        "tau_sim": thresholds.similar,
        "target_keep_ratio": options.target,
        "per_rank": options.ranks,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
