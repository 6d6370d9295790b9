"""A checkpoint without a head profile gets one before it is served: once, kept in the user's cache folder.

It is made by a process of its own, which gives the device back whole before a pool is allocated, and by the launcher
alone, so that all ranks read the same."""

import ctypes
import fcntl
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.files import check_writable, find_profile, load_profile
from hetero_sglang.profile.local_model import local_folder
from hetero_sglang.profile.made_profiles import place
from hetero_sglang.sglang.asked import AUTO

logger = logging.getLogger("hetero_sglang")

_DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "tokenizer*"]


def profile_of(args: Any) -> Path:
    """The head profile of the model that SGLang's arguments name: the one given, the one found, else one made now, on
    the first device that will serve.

    Raises HeteroError where none can be had."""
    found = find_profile(args.model_path, None if args.hetero_profile == AUTO else args.hetero_profile)
    if found is not None:
        return found
    if args.nnodes > 1:
        raise HeteroError(
            f"no head profile was found for {args.model_path}, and each of {args.nnodes} nodes would make its own; "
            f"make one with `hetero-sglang profile {args.model_path}` and give it to all with `--hetero-profile`."
        )
    model = local_folder(args.model_path) or downloaded(args.model_path, args.revision)
    out = place(model)
    with _alone(out):  # another server of this model may be making it
        if not _whole(out):
            _make(model, out, f"cuda:{args.base_gpu_id}" if args.attention_backend == "flashinfer" else "cpu")
    return out


def downloaded(model: str, revision: str | None) -> Path:
    """The snapshot of a Hugging Face name. Raises HeteroError where it cannot be had."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=_FILES))
    except Exception as error:  # of a dozen kinds
        said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise HeteroError(
            f"{model} is no folder here and cannot be downloaded to be calibrated ({said}); check --model-path."
        ) from None


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Inside, nobody else on this machine makes `out`. Raises HeteroError where it cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        check_writable(out)
        lock = out.with_suffix(".lock").open("w")
    except (OSError, HeteroError) as error:
        raise HeteroError(
            f"a head profile cannot be kept in {out.parent} ({str(error).rstrip('.')}); set XDG_CACHE_HOME to a folder "
            f"that can be written, or give a profile with `--hetero-profile FILE`."
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _whole(path: Path) -> bool:
    """Whether a profile is there and can be read; one that was damaged is made anew."""
    if not path.exists():
        return False
    try:
        load_profile(path)
    except HeteroError as error:
        logger.warning("%s; it is made anew.", str(error).rstrip("."))
        return False
    return True


def _make(model: Path, out: Path, device: str) -> None:
    logger.warning("%s has no head profile yet: it is calibrated now, once, for %s.", model, out)
    done = subprocess.run(command(model, out, device), stdout=sys.stderr.fileno(), preexec_fn=_end_with_parent)
    if done.returncode:
        raise HeteroError(
            f"the calibration of {model} ended with exit code {done.returncode}, as said above; give a profile with "
            f"`--hetero-profile FILE`, or use --kv-policy full."
        )


def command(model: Path, out: Path, device: str) -> list[str]:
    """What calibrates."""
    return [sys.executable, "-m", "hetero_sglang.cli", "profile", str(model), "--out", str(out), "--device", device]


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
