"""Head profiles on disk: reading, writing, and finding the one of a model."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile import reference, schema
from hetero_sglang.profile.fingerprint import fingerprint as fingerprint
from hetero_sglang.profile.head_profile import HeadProfile
from hetero_sglang.profile.json_file import MOST_BYTES, check_file, naming, read_object
from hetero_sglang.profile.local_model import local_folder

PROFILE_NAME = "hetero_profile.json"
_PACKAGE = Path(__file__).resolve().parents[1]
# Inside a wheel, and in a source tree.
SHIPPED = ((_PACKAGE / "profile" / "shipped", "*.json"), (_PACKAGE.parent / "assets", f"*/{PROFILE_NAME}"))


def load_profile(path: str | Path) -> HeadProfile:
    """A validated profile from our schema or the reference's. Raises HeteroError naming file and place."""
    data = read_object(path)
    with naming(str(path)):
        if data.get("format") == schema.FORMAT:
            return schema.decode(data)
        if reference.is_reference(data):
            return reference.decode_reference(data, Path(path).stem)
        raise HeteroError(f'`format` is not "{schema.FORMAT}" and it is no HeteroCache head file either.')


def save_profile(profile: HeadProfile, path: str | Path) -> None:
    """Writes our schema, whole or not at all. Raises HeteroError when the folder cannot take it, or no one read it."""
    text = dumps(schema.encode(profile))
    if (size := len(text.encode())) > MOST_BYTES:
        raise HeteroError(
            f"the profile would have {size} bytes and none with more than {MOST_BYTES} is read; choose a smaller "
            "`--index-fields`."
        )
    write_text(path, text)


def dumps(data: dict[str, Any]) -> str:
    """JSON with one line per innermost list or small object, so that files can be read and compared."""
    return _lines(data, "") + "\n"


def _lines(value: Any, indent: str) -> str:
    inner = indent + "  "
    if isinstance(value, dict) and value:
        items = (f"{inner}{json.dumps(k)}: {_lines(v, inner)}" for k, v in value.items())
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(v, (list, dict)) for v in value):
        return "[\n" + ",\n".join(inner + _lines(v, inner) for v in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False)


def check_writable(path: str | Path) -> None:
    """Raises HeteroError unless a file can be put at `path`; leaves nothing there."""
    target = Path(path)
    if target.exists() and not target.is_file():
        raise HeteroError(f"{target} is no regular file, so nothing can be written there; choose another path.")
    if _nameless(target):
        return
    try:
        with tempfile.TemporaryFile(dir=target.parent) as file:
            file.write(b" " * 4096)
    except OSError as error:
        raise HeteroError(f"{target} cannot be written: {error.strerror or error}; choose another path.") from None


def write_text(path: str | Path, text: str) -> None:
    """Writes a file of UTF-8 text, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a file through a temporary one beside it, so that none is left half-written; memory of an open descriptor
    (/proc/PID/fd/N), which has no name to be found by, at once."""
    target = Path(path)
    check_writable(target)
    if _nameless(target):
        target.write_bytes(content)
        return
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise HeteroError(f"{target} cannot be written: {error.strerror or error}; nothing was left behind.") from None


def _nameless(target: Path) -> bool:
    return target.exists() and target.stat().st_nlink == 0


def find_profile(model_path: str | Path, explicit: str | None = None, revision: str | None = None) -> Path | None:
    """The profile of a model: `explicit`, else the one beside the checkpoint, else a shipped one whose fingerprint
    matches; None where there is none. Raises HeteroError for an explicit one that is not there."""
    if explicit is not None:
        check_file(explicit, "the head profile")
        return Path(explicit)
    folder = local_folder(model_path, revision)
    if folder is None:
        return None
    if (folder / PROFILE_NAME).exists():
        return folder / PROFILE_NAME
    return _shipped(folder)


def shipped() -> list[Path]:
    """The profiles that come with this package."""
    return [path for place, pattern in SHIPPED for path in sorted(place.glob(pattern))]


def _shipped(folder: Path) -> Path | None:
    if not (folder / "config.json").is_file():
        return None
    candidates = shipped()
    wanted = fingerprint(folder) if candidates else None
    for path in candidates:
        if read_object(path).get("provenance", {}).get("fingerprint") == wanted:
            return path
    return None
