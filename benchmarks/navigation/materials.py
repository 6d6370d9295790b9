"""What rows are served from: made once in a folder from the model, with the project's own commands."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.quality.servers import last_word
from benchmarks.weights.quantise import quantise
from hetero_sglang.errors import HeteroError
from hetero_sglang.exits.branch import Branch
from hetero_sglang.exits.files import EXITS_NAME, load

from .demonstration import REPLY, Demonstration, demonstrate
from .exits import static_exit, truncate
from .layout import Layout
from .words import decode

TEXT_SEED = 900_000  # the expert's episodes, in worlds that no one plays
TEXTS, CHATS = 12, 48  # of these for a head profile, and for branches, which learn from the player's few words alone
TOKENS = 1 << 18  # of the latter, at most


@dataclass(frozen=True)
class Materials:
    """The model, a folder for what is made of it, and what was given: an early-exit file and an adapter."""

    model: Path
    folder: Path
    layout: Layout
    exits_file: Path | None = None
    adapter: Path | None = None

    @property
    def layers(self) -> int:
        """Of the model."""
        return int(json.loads((self.model / "config.json").read_text())["num_hidden_layers"])

    def texts(self) -> list[Path]:
        """Histories as UTF-8 text, for the head profile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        found = [self.folder / f"episode-{number}.txt" for number in range(TEXTS)]
        for number, path in enumerate(found):
            if not path.exists():
                ids = demonstrate(self.layout, TEXT_SEED + number, slips=0.02).ids[1:]
                path.write_text(" ".join(decode(ids)), encoding="utf-8")
        return found

    def chats(self) -> Path:
        """As JSON lines, an episode a line, for branches: they are asked at the player's words alone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "episodes.jsonl"
        if not path.exists():
            shown = (demonstrate(self.layout, TEXT_SEED + number, slips=0.02) for number in range(CHATS))
            path.write_text("".join(json.dumps({"messages": messages(each)}) + "\n" for each in shown), "utf-8")
        return path

    def profile(self) -> Path:
        """The head profile; the model's own where it has one."""
        shipped = self.model / "hetero_profile.json"
        made = self.folder / "hetero_profile.json"
        return shipped if shipped.exists() else self._made("profile", self.model, self.texts(), made)

    def exits(self, weights: str) -> Path:
        """The early-exit file of a `checkpoint`. Raises HeteroError where none is given and none can be trained."""
        if self.exits_file is not None:
            return self.exits_file
        command, out = f"exits train --branch head --tokens {TOKENS}", self.folder / f"exits-{weights}" / EXITS_NAME
        return self._made(command, self.checkpoint(weights), [self.chats()], out)

    def branches(self, weights: str) -> tuple[Branch, ...]:
        """Of the early-exit file."""
        return load(self.exits(weights), self.checkpoint(weights)).branches

    def checkpoint(self, weights: str, branch: Any = None) -> Path:
        """The model (or what ends at a branch), `plain` or `nf4`, or `numbers`: nf4's numbers in plain 16 bits."""
        model, name = self.model, "whole"
        if branch is not None:
            name = f"layer-{branch.layer}-{_digest(branch)}"
            model = self._once(f"{name}-plain", lambda out: static_exit(self.model, branch, out))
        if weights == "plain":
            return model
        packed = self._once(f"{name}-nf4", lambda out: quantise(model, "nf4", out))
        return packed if weights == "nf4" else self._once(f"{name}-numbers", lambda out: plain_again(packed, out))

    def cut(self, layers: int) -> Path:
        """The first layers under the model's own norm and head, which measure time alone."""
        return self._once(f"cut-{layers}", lambda out: truncate(self.model, layers, out))

    def _once(self, name: str, make: Any) -> Path:
        out = self.folder / name
        return out if (out / "model.safetensors").exists() else make(out)

    def _made(self, command: str, model: Path, texts: Sequence[Path], out: Path) -> Path:
        if out.exists():
            return out
        out.parent.mkdir(parents=True, exist_ok=True)
        words = [*command.split(), str(model), "--text", *map(str, texts), "--out", str(out)]
        done = subprocess.run([sys.executable, "-m", "hetero_sglang.cli", *words], capture_output=True, text=True)
        if done.returncode:
            raise HeteroError(f"`hetero-sglang {command}` did not end well: {last_word(done.stderr)}")
        return out


def _digest(branch: Branch) -> str:
    """A few letters that another branch at the same layer does not have."""
    found = hashlib.sha256()
    for name, tensor in sorted(branch.tensors().items()):
        found.update(name.encode() + tensor.float().numpy().tobytes())
    return found.hexdigest()[:8]


def messages(shown: Demonstration) -> list[dict[str, str]]:
    """What is seen and what is said, in turn."""
    found = []
    for begin, end in pairwise([*shown.turns, len(shown.ids)]):
        for role, part in (("user", slice(max(1, begin), end - REPLY)), ("assistant", slice(end - REPLY, end))):
            found.append({"role": role, "content": " ".join(decode(shown.ids[part])) + " "})
    return found


def weight_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's tensors, as they lie on the device."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def narrow_bytes(path: Path) -> int:
    """Bytes of the numbers of a safetensors file, or of all in a folder, which are served in 16 bits."""
    from safetensors import safe_open

    count = 0
    for each in path.glob("*.safetensors") if path.is_dir() else [path]:
        with safe_open(each, "pt") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return 2 * count


def plain_again(packed: Path, out: Path) -> Path:
    """The numbers that a 4-bit checkpoint of `benchmarks.weights` stands for, in bfloat16: any machine serves these."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(packed, dtype=torch.bfloat16, device_map="cpu").dequantize()
    plain = {name: each.detach().bfloat16().contiguous() for name, each in model.state_dict().items()}
    return write_like(packed, plain, out)


def write_like(model: Path, weights: dict[str, Any], out: Path) -> Path:
    """`out` with these weights, and the configuration and tokenizer of `model`, unquantised."""
    import shutil

    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((model / "config.json").read_text())
    config.pop("quantization_config", None)
    (out / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, out / name)
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    return out
