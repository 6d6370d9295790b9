"""A checkpoint without a head profile gets one before it is served: once, kept in the user's cache folder where that
can be written.

It is made by a process of its own, which gives the device back whole before a pool is allocated, and by the launcher
alone, so that all ranks read the same."""

import ctypes
import fcntl
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.files import find_profile, load_profile, write_text
from hetero_sglang.profile.local_model import has_weights, local_folder
from hetero_sglang.profile.made_profiles import place
from hetero_sglang.sglang.asked import AUTO

logger = logging.getLogger("hetero_sglang")

_DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "tokenizer*"]


def profile_of(args: Any) -> Path:
    """The head profile of the model that SGLang's arguments name: the one given, the one found, else one made now, on
    the first device that will serve.

    Raises HeteroError where none can be had."""
    given = None if args.hetero_profile == AUTO else args.hetero_profile
    found = find_profile(args.model_path, given, args.revision)
    if found is not None:
        return found
    if args.nnodes > 1:
        raise HeteroError(
            f"no head profile was found for {args.model_path}, and each of {args.nnodes} nodes would make its own; "
            f"make one with `hetero-sglang profile {args.model_path}` and give it to all with `--hetero-profile`."
        )
    model = local_folder(args.model_path, args.revision)
    if model is None or (not has_weights(model) and not Path(args.model_path).is_dir()):
        model = downloaded(args.model_path, args.revision)
    out = place(model)
    if out.exists() and _whole(out):  # perhaps in a folder that cannot be written
        return out
    with _alone(out):
        if out.exists() and _whole(out):  # another server of this model has made it meanwhile
            return out
        device = f"cuda:{args.base_gpu_id}" if args.attention_backend == "flashinfer" else "cpu"
        return _kept(_made(model, out, device), out)


def downloaded(model: str, revision: str | None) -> Path:
    """The snapshot of a Hugging Face name. Raises HeteroError where it cannot be had."""
    from huggingface_hub import snapshot_download

    if Path(model).is_file():
        raise HeteroError(
            f"{model} is a single file (GGUF), which calibration cannot read; make a profile of the model that it was "
            f"quantised from and give it with `--hetero-profile FILE`."
        )
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=_FILES))
    except Exception as error:  # of a dozen kinds
        said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise HeteroError(
            f"{model} is no folder here and cannot be downloaded to be calibrated ({said}); check --model-path."
        ) from None


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Inside, nobody else on this machine makes `out`, if its folder can be written."""
    with ExitStack() as held:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context(out.with_suffix(".lock").open("w"))
        except OSError:  # nobody can put it there
            pass
        else:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _whole(path: Path) -> bool:
    """Whether the profile that is there can be read; one that is damaged is made anew."""
    try:
        load_profile(path)
    except HeteroError as error:
        logger.warning("%s; it is made anew.", str(error).rstrip("."))
        return False
    return True


def _made(model: Path, out: Path, device: str) -> int:
    """A descriptor of memory that holds the model's profile; it ends with this process, and no disk is needed.

    HeteroError where calibration fails."""
    logger.warning("%s has no head profile yet: it is calibrated now, once, for %s.", model, out)
    memory = os.memfd_create("hetero-profile", os.MFD_CLOEXEC)
    words = command(model, Path(f"/proc/self/fd/{memory}"), device)
    done = subprocess.run(words, stdout=sys.stderr.fileno(), preexec_fn=_end_with_parent, pass_fds=(memory,))
    if done.returncode:
        os.close(memory)
        raise HeteroError(
            f"the calibration of {model} ended with exit code {done.returncode}, as said above; give a profile with "
            f"`--hetero-profile FILE`, or use --kv-policy full."
        )
    return memory


def _kept(memory: int, out: Path) -> Path:
    """`out` with what the memory holds; where that cannot be written, the memory, as ranks can read it."""
    path = Path(f"/proc/{os.getpid()}/fd/{memory}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, path.read_text(encoding="utf-8"))
    except (OSError, HeteroError) as error:
        logger.warning(
            "The head profile is used and not kept (%s); for later starts set XDG_CACHE_HOME to a folder that can be "
            "written, or give a profile with `--hetero-profile FILE`.",
            str(error).rstrip("."),
        )
        return path
    os.close(memory)
    return out


def command(model: Path, out: Path, device: str) -> list[str]:
    """What calibrates."""
    return [sys.executable, "-m", "hetero_sglang.cli", "profile", str(model), "--out", str(out), "--device", device]


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
