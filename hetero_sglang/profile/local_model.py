"""Where a model's files lie on this machine."""

from pathlib import Path


def local_folder(model_path: str | Path, revision: str | None = None) -> Path | None:
    """A folder as given, or the downloaded snapshot of a Hugging Face name, of its latest revision unless one is named;
    None when neither is here."""
    folder = Path(model_path)
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(str(model_path), "config.json", revision=revision)
    except (ImportError, ValueError):  # ValueError: not a repository name
        return None
    return Path(found).parent if isinstance(found, str) else None


def has_weights(folder: Path) -> bool:
    """Whether they are in it; a snapshot may be of its configuration alone."""
    return any(folder.glob("*.safetensors"))
