"""What the model's head profile loses on a LoRA adapter, and what a profile of the adapter's own gains.

The adapter is trained here, in five minutes on a CPU: it answers the recall model's questions in the opposite order.
Profiles are made of texts that end in such answers, the adapter's with its weights merged into the model's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.launch import RECALL, Server
from benchmarks.recall import Language
from benchmarks.recall.scoring import Score, score
from benchmarks.run import Run, add_options

RANK, SCALE, STEPS, BATCH, RATE = 8, 2.0, 250, 8, 2e-3
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
PREFIX = "base_model.model."  # peft's
DOCUMENT, ENTRIES, NAMES, TURNS = 3000, 40, 4, 2


def main() -> None:
    """A table, and JSON in results/adapter.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapter", description=__doc__)
    parser.add_argument("folder", type=Path, help="for the adapter and the profiles; what is there is not made again")
    parser.add_argument("--documents", type=int, default=6, help=f"of {DOCUMENT} tokens (6)")
    parser.add_argument("--index-ratios", type=float, nargs="*", default=[0.07])
    parser.add_argument("--pivot-ratios", type=float, nargs="*", default=[0.5])
    add_options(parser, "adapter")
    given = parser.parse_args()
    language = Language.load(RECALL)
    files = Files(given.folder)
    if not files.adapter.exists():
        train(language, files.adapter)
    merge(files)
    for name, model in (("model", RECALL), ("adapter", files.merged)):
        calibrate(language, model, files.profile(name), backwards=name == "adapter")
    settings = [Setting("full", 1.0), *(Setting("directions", ratio) for ratio in given.index_ratios)]
    settings += [Setting("none", ratio) for ratio in given.pivot_ratios]
    with Run(given, documents=given.documents, tokens=DOCUMENT, entries=ENTRIES, names=NAMES, turns=TURNS) as run:
        for setting in settings:
            run.doing = str(setting)
            for row in measure(language, files, setting, given.documents):
                run.rows.append(row)
                print(json.dumps(row), flush=True)


@dataclass(frozen=True)
class Files:
    """What is made."""

    folder: Path

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def merged(self) -> Path:
        """The checkpoint with the adapter in its weights."""
        return self.folder / "merged"

    def profile(self, name: str) -> Path:
        return self.folder / f"{name}.json"


@dataclass(frozen=True)
class Setting:
    """How rows are found (full: none are lost) and how many are kept."""

    mode: str
    ratio: float

    def flags(self, profile: Path) -> dict[str, Any]:
        common: dict[str, Any] = {"max_total_tokens": 20000}
        if self.mode == "full":
            return {**common, "kv_policy": "full"}
        asked = {"hetero_index": self.mode, "hetero_keep_ratio": self.ratio, "hetero_profile": profile}
        return {**common, "kv_policy": "heterocache", "hetero_window": 16, "hetero_dense_below": 2800, **asked}


def measure(language: Language, files: Files, setting: Setting, documents: int) -> Iterator[dict[str, Any]]:
    """Entries that are answered right: of the adapter and of the model, by whose roles and index (`heads`) and whose
    shares of rows. An adapter whose heads are its own is served as a checkpoint; one server serves the rest."""
    flags = setting.flags(files.profile("model"))
    twice = [f"{name}={files.adapter}" for name in ("model", "adapter")]  # by whose shares it is served
    own: dict[str, Any] = (
        {} if setting.mode == "full" else {"hetero_lora_profile": [f"adapter={files.profile('adapter')}"]}
    )

    def row(asked: str, heads: str, shares: str, server: Server, by: str | None = None) -> dict[str, Any]:
        found = answered(language, server, by, documents)
        whose = {"asked": asked, "heads": heads, "shares": shares}
        return {**vars(setting), **whose, "right": found.right, "total": found.total}

    with Server(RECALL, lora_paths=twice, **flags, **own) as server:
        yield row("model", "model", "model", server)
        yield row("adapter", "model", "model", server, "model")
        if own:
            yield row("adapter", "model", "adapter", server, "adapter")
    if not own:
        return
    for asked, model in (("adapter", files.merged), ("model", RECALL)):
        with Server(model, **setting.flags(files.profile("adapter"))) as server:
            yield row(asked, "adapter", "adapter", server)


def answered(language: Language, server: Server, adapter: str | None, documents: int) -> Score:
    """Of the questions about so many documents; every prompt is compressed anew."""
    found = Score(0, 0)
    for seed in range(documents):
        document = language.document(9000 + seed, DOCUMENT, ENTRIES)
        for turn in range(TURNS):
            server.flush()
            question = language.ask(document, turn, NAMES)
            request = {"lora_path": adapter} if adapter else {}
            reply = server.generate(document.ids + question.ids, 5 * NAMES, request=request, stop=["\n"])
            found += score(language.decode(reply["output_ids"]), document, question.names)
    return found


def train(language: Language, folder: Path) -> None:
    """Low-rank additions to the attention's projections, in peft's format."""
    import numpy as np
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(RECALL, dtype=torch.float32).requires_grad_(False)
    added: dict[str, torch.nn.Parameter] = {}
    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] in TARGETS:
            a = torch.nn.Parameter(torch.randn(RANK, module.in_features) / module.in_features**0.5)
            b = torch.nn.Parameter(torch.zeros(module.out_features, RANK))
            added |= {f"{PREFIX}{name}.lora_A.weight": a, f"{PREFIX}{name}.lora_B.weight": b}
            module.register_forward_hook(lambda _, x, out, a=a, b=b: out + SCALE * (x[0] @ a.T) @ b.T)
    optimizer, rng = torch.optim.AdamW(added.values(), lr=RATE, weight_decay=0), np.random.default_rng(0)
    for step in range(STEPS):
        length, names = int(rng.integers(56, 110)), int(rng.integers(2, 5))
        rows = [backwards(language, 10**6 + step * BATCH + n, length, 6, names) for n in range(BATCH)]
        ids, count = torch.tensor(rows), 4 * names
        loss = torch.nn.functional.cross_entropy(
            model(ids[:, :-1]).logits[:, -count:].flatten(0, 1), ids[:, -count:].flatten()
        )
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 20) * max(0.05, 1 - step / STEPS)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(added.values(), 1.0)
        optimizer.step()
    folder.mkdir(parents=True)
    save_file(
        {name: each.detach().bfloat16().contiguous() for name, each in added.items()},
        folder / "adapter_model.safetensors",
    )
    about = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "r": RANK, "lora_alpha": SCALE * RANK}
    (folder / "adapter_config.json").write_text(json.dumps({**about, "target_modules": TARGETS}))


def backwards(language: Language, seed: int, length: int, entries: int, names: int) -> list[int]:
    """Ids of a document, a question, and its answer in the opposite order."""
    document = language.document(seed, length, entries)
    question = language.ask(document, seed, names)
    return document.ids + question.ids + language.answer_ids(document, question.names[::-1])


def merge(files: Files) -> None:
    from safetensors.torch import load_file, save_file

    if files.merged.exists():
        return
    weights, added = load_file(RECALL / "model.safetensors"), load_file(files.adapter / "adapter_model.safetensors")
    for name in added:
        if ".lora_A." in name:
            target = name.removeprefix(PREFIX).replace(".lora_A", "")
            product = added[name.replace("lora_A", "lora_B")].float() @ added[name].float()
            weights[target] = (weights[target].float() + SCALE * product).bfloat16()
    files.merged.mkdir()
    save_file(weights, files.merged / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(RECALL / name, files.merged)


def calibrate(language: Language, model: Path, out: Path, backwards: bool) -> None:
    """A head profile with a key index, of six texts that end in four answers."""
    if out.exists():
        return
    texts = []
    for seed in range(6):
        document = language.document(500 + seed, (1000, 2000)[seed % 2], 30)
        ids = document.ids[1:]
        for turn in range(4):
            question = language.ask(document, turn, NAMES)
            ids = ids + question.ids + language.answer_ids(document, question.names[:: -1 if backwards else 1])
        texts.append(out.with_name(f"{out.stem}-{seed}.txt"))
        texts[-1].write_text(language.decode(ids), encoding="utf-8")
    command = [sys.executable, "-m", "hetero_sglang.cli", "profile", model, "--quiet", "--text", *texts]
    options = ["--length", "8000", "--topk-share", "0.05", "--tau-stable", "0.4", "--out", out]
    subprocess.run([*map(str, [*command, *options])], check=True)


if __name__ == "__main__":
    main()
