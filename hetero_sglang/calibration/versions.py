"""Versions of what made a file, for its provenance."""

from importlib import metadata


def versions() -> dict[str, str]:
    """By package; "unknown" for one that is not installed."""
    return {name: _version(name) for name in ("hetero-sglang", "torch", "transformers")}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
