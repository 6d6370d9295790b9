"""Where a model's files lie on this machine."""

from pathlib import Path


def local_folder(model_path: str | Path) -> Path | None:
    """A folder as given, or the downloaded snapshot of a Hugging Face name; None when neither is here."""
    folder = Path(model_path)
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(str(model_path), "config.json")
    except (ImportError, ValueError):  # ValueError: not a repository name
        return None
    return Path(found).parent if isinstance(found, str) else None
