"""Branches on disk: a JSON file, and their tensors in a safetensors file of the same stem beside it."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as dump

from hetero_sglang.errors import HeteroError
from hetero_sglang.exits import schema
from hetero_sglang.exits.exits import Exits
from hetero_sglang.profile.files import check_writable, dumps, write_bytes, write_text
from hetero_sglang.profile.fingerprint import fingerprint, read_config
from hetero_sglang.profile.json_file import naming, read_object
from hetero_sglang.profile.safetensors_header import read_header

EXITS_NAME = "hetero_exits.json"
_NOUN = "the early-exit file"
_SIZES = ("num_hidden_layers", "hidden_size", "vocab_size")


def load(path: str | Path, model: str | Path | Mapping[str, Any] | None = None) -> Exits:
    """The branches in a file, for the checkpoint in the folder `model`, or for a model with this configuration.

    Raises HeteroError for a file that cannot be read or is not whole, and for branches of another model or shape; of a
    configuration alone it cannot tell other weights of the same shape."""
    data = read_object(path, _NOUN)
    with naming(str(path)):
        exits = schema.decode(data, lambda digest, shapes: _read_tensors(tensors_path(path), digest, shapes))
    if model is not None:
        _check_model(exits, str(path), model)
    return exits


def save(exits: Exits, path: str | Path) -> None:
    """Writes both files. A run that is killed between them leaves a pair that `load` refuses.

    Raises HeteroError as `check_place` does."""
    check_place(path)
    content = dump(schema.tensors(exits))
    write_bytes(tensors_path(path), content)
    write_text(path, dumps(schema.encode(exits, f"sha256:{hashlib.sha256(content).hexdigest()}")))


def tensors_path(path: str | Path) -> Path:
    """Where the tensors of a file lie."""
    return Path(path).with_suffix(".safetensors")


def check_place(path: str | Path) -> None:
    """Raises HeteroError unless a file and its tensors can be put at `path`."""
    target = Path(path)
    if target.suffix != ".json":
        raise HeteroError(f"{target} must end in .json; its tensors come beside it, in {tensors_path(target).name}.")
    if (target.parent / "config.json").exists():
        raise HeteroError(
            f"{target} lies in a checkpoint's folder, where its tensors would be read as the model's; choose another "
            "folder."
        )
    for each in (target, tensors_path(target)):
        check_writable(each)


def _check_model(exits: Exits, name: str, model: str | Path | Mapping[str, Any]) -> None:
    config = model if isinstance(model, Mapping) else read_config(model)
    sizes = [config.get(size) for size in _SIZES]
    layers, hidden, vocabulary = (size if isinstance(size, int) else 0 for size in sizes)
    exits.check_model(layers, hidden, vocabulary, name)
    if not isinstance(model, Mapping) and exits.fingerprint not in (None, fingerprint(model)):
        raise HeteroError(f"{name} was trained on other weights than {model}; train branches of this model.")


def _read_tensors(path: Path, digest: str, shapes: schema.Shapes) -> schema.Tensors:
    """Those of a file, whose header must announce them before they are loaded."""
    with naming(f"its tensors in {path.name}", mark=""):
        try:
            found = os.stat(path)
            if not stat.S_ISREG(found.st_mode):
                raise HeteroError("are no regular file; copy both files again.")
            with open(path, "rb") as file:
                _check_header(read_header(file, found.st_size)[0], shapes)
                file.seek(0)
                same = digest == f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            if not same:
                raise HeteroError("are of another run than the file; copy both files again, or train again.")
            return load_file(path)
        except (FileNotFoundError, NotADirectoryError):
            raise HeteroError("do not exist; copy both files.") from None
        except OSError as error:
            raise HeteroError(f"cannot be read: {error.strerror or error}.") from None
        except HeteroError:
            raise
        except (SafetensorError, ValueError, RecursionError, struct.error):
            raise HeteroError("are no whole safetensors file; copy both files again.") from None


def _check_header(header: Mapping[str, Any], shapes: schema.Shapes) -> None:
    if missing := sorted(shapes.keys() - header.keys()):
        raise HeteroError(f"lack `{missing[0]}`; train the branches again.")
    if extra := sorted(header.keys() - shapes.keys()):
        raise HeteroError(f"hold `{extra[0][:60]}`, which no branch has; train the branches again.")
    for name, shape in shapes.items():
        about = header[name]
        claimed = about.get("shape") if isinstance(about, Mapping) else None
        if claimed != list(shape):
            raise HeteroError(f"hold `{name}` of shape {str(claimed)[:60]}; it must be {list(shape)}.")
