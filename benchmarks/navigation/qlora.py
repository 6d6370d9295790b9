"""`python -m benchmarks.navigation.qlora MODEL --out DIR`: fit the model to other worlds, its weights in 4 bits.

QLoRA by bitsandbytes (nf4) and PEFT: the backbone stays in 4 bits, low-rank additions are trained on the expert's
episodes in the other worlds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.recall.training.schedule import rate_factor
from hetero_sglang.errors import HeteroError, ending_the_process

from .layout import LAYOUTS

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train an adapter in PEFT's format, and play with it and without it."""
    given = _parser().parse_args(arguments)
    with ending_the_process():
        run(given)


def run(given: argparse.Namespace) -> dict[str, Any]:
    """What the flags say; what is written as training.json. Raises HeteroError without PEFT or bitsandbytes."""
    import torch

    try:
        import bitsandbytes  # noqa: F401  (what transformers quantises with)
        import peft
    except ModuleNotFoundError as error:
        raise HeteroError(f"QLoRA needs {error.name}: pip install peft bitsandbytes.") from None

    torch.manual_seed(given.seed)
    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = peft.prepare_model_for_kbit_training(four_bit(given.model, device), use_gradient_checkpointing=False)
    lora = peft.LoraConfig(
        r=given.rank, lora_alpha=2 * given.rank, target_modules=list(TARGETS), task_type="CAUSAL_LM", lora_dropout=0.0
    )
    model = peft.get_peft_model(model, lora)
    totals = _train(model, given, device)
    model.save_pretrained(given.out)
    record = {
        "model": given.model.name, "layout": given.layout, "rank": given.rank, "rate": given.rate, "totals": totals,
        "played": _play(given, device), "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
    }  # fmt: skip
    (given.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    (given.out / "README.md").unlink(missing_ok=True)  # PEFT's empty form
    return record


def four_bit(model: Path, device: str) -> Any:
    """The checkpoint with its linear layers in nf4, as `benchmarks.weights` packs them too."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    compute = torch.bfloat16 if device == "cuda" else torch.float32
    packed = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    return AutoModelForCausalLM.from_pretrained(model, quantization_config=packed, dtype=compute, device_map=device)


def merged(model: Path, adapter: Path | None, device: str) -> Any:
    """A Navigator of the 4-bit numbers, with the adapter's additions where one is given."""
    import peft

    from .model import Navigator

    plain = four_bit(model, device).dequantize()
    if adapter is not None:
        plain = peft.PeftModel.from_pretrained(plain, adapter).merge_and_unload()
    return Navigator.of(plain).to(device)


def _train(model: Any, given: argparse.Namespace, device: str) -> dict[str, Any]:
    """One optimizer step for each batch of episodes, of which each is read alone."""
    import torch
    import torch.nn.functional as F

    from .batches import Batches, load
    from .trainer import weights_on

    layout = LAYOUTS[given.layout]
    batches = Batches(layout, given.rooms or layout.rooms, given.batch_tokens, given.seed + 1, given.slips)
    data = load(batches, given.workers, torch.device(device))
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=given.rate, weight_decay=0.0)
    weights = weights_on(device)
    began, step, tokens, shown, losses = time.monotonic(), 0, 0, 0.0, []
    while True:
        seconds = time.monotonic() - began
        fraction = step / given.steps if given.steps else seconds / (60 * given.minutes)
        if fraction >= 1:
            break
        batch = next(data)
        for group in optimizer.param_groups:
            group["lr"] = given.rate * rate_factor(step, fraction, warmup=20)
        optimizer.zero_grad(set_to_none=True)
        weight = weights[batch.kinds.long()]
        whole, loss_of_all = weight.sum(), 0.0
        parts = (t.split(batch.lengths) for t in (batch.ids.long(), batch.targets.long(), weight))
        for ids, targets, each in zip(*parts, strict=True):
            logits = model(input_ids=ids[None], use_cache=False).logits[0].float()  # [L, V]
            loss = (F.cross_entropy(logits, targets, reduction="none") * each).sum() / whole
            loss.backward()
            loss_of_all += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step, tokens = step + 1, tokens + len(batch.ids)
        losses.append(loss_of_all)
        if seconds - shown > 10 or step == 1:
            print(
                f"{seconds:5.0f} s  step {step}  {tokens / 1e6:.1f}M  loss {loss_of_all:.4f}",
                file=sys.stderr,
                flush=True,
            )
            shown = seconds
    seconds = time.monotonic() - began
    return {"steps": step, "tokens": tokens, "seconds": round(seconds, 1), "first_loss": losses[0], "loss": losses[-1]}


def _play(given: argparse.Namespace, device: str) -> dict[str, Any]:
    """Episodes in the other worlds by the 4-bit model, without and with the adapter."""
    from .episode import play, summary
    from .model import ModelPlayer
    from .train import EVALUATION_SEED
    from .words import most_tokens

    layout = LAYOUTS[given.layout].of(given.rooms or LAYOUTS[given.layout].rooms)
    seeds = range(EVALUATION_SEED, EVALUATION_SEED + given.episodes)
    found = {}
    for name, adapter in (("4-bit", None), ("4-bit + QLoRA", given.out)):
        player = ModelPlayer(merged(given.model, adapter, device), given.episodes, most_tokens(layout))
        found[name] = summary(play(layout, seeds, player))
        print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.navigation.qlora",
        description=main.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("model", type=Path, help="folder of the navigation model")
    add("--out", type=Path, required=True, help="folder for the adapter")
    add("--layout", choices=LAYOUTS, default="mirrored", help="the other worlds")
    add("--rooms", type=int, help="rooms on a side, if not the layout's")
    add("--device", help="cuda or cpu; where there is a GPU, it, if left out")
    add("--minutes", type=float, default=4.0)
    add("--steps", type=int, help="train this many steps, however long they take")
    add("--batch-tokens", type=int, default=32768, help="tokens per step")
    add("--rank", type=int, default=16)
    add("--rate", type=float, default=1e-3, help="peak learning rate")
    add("--slips", type=float, default=0.05, help="likelihood that a turn goes wrong; the next then does so by half")
    add("--workers", type=int, default=8, help="processes that draw demonstrations; 0: none but this one")
    add("--episodes", type=int, default=32, help="to play before and after")
    add("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
