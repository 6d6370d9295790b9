"""What 8 bits do to a model's keys and values, simulated exactly: how far its next words part from bfloat16's.

Prompts are read in float32. What is stored of them, and of each token after them, is rounded in some ways; the true
continuation is forced. No server, no compression: what is lost here no cache can give back."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.real.sources import KINDS
from benchmarks.real.texts import CALIBRATION, HELD_OUT, Text, texts
from benchmarks.real_text import load_tokenizer
from benchmarks.run import Run, add_options

Rounding = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    """A table, and JSON in results/eight-bits.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real.eight_bits", description=__doc__)
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("--prompt", type=int, default=2048, help="tokens (default: 2048)")
    parser.add_argument("--steps", type=int, default=96, help="tokens after it (default: 96)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--texts", type=int, default=1, help="of each kind (default: 1)")
    add_options(parser, "eight-bits")
    given = parser.parse_args()
    tokenizer, length = load_tokenizer(given.model), given.prompt + given.steps + 1
    scored = texts(given.kinds, HELD_OUT, tokenizer, length, given.texts, given.prompt)
    other = texts(["reference"], CALIBRATION, tokenizer, given.prompt, 1)[0]
    with Run(given, model=given.model.name, prompt=given.prompt, steps=given.steps) as run, torch.inference_mode():
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(str(given.model), dtype=torch.float32)
        means = [keys.mean(2, keepdim=True) for keys, _ in _prompt(model, other.ids)]
        for text in scored:
            run.does(f"{text.kind}: {', '.join(text.names)}")
            for row in measured(model, text, means):
                print(line(run.keep(row)), flush=True)
    print("saved", run.save())


def wide(values: torch.Tensor) -> torch.Tensor:
    """As bfloat16 has them."""
    return values.bfloat16().float()


def narrow(dtype: torch.dtype) -> Rounding:
    """As `dtype`, of 8 bits."""
    most = torch.finfo(dtype).max
    return lambda values: values.clamp(-most, most).to(dtype).float()


def whole(values: torch.Tensor) -> torch.Tensor:
    """As whole numbers of 8 bits, with a scale for each row."""
    scale = values.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return (values / scale).round() * scale


E4M3, E5M2 = narrow(torch.float8_e4m3fn), narrow(torch.float8_e5m2)
# Of keys, of values; and whether of keys less the mean of another text's.
WAYS: dict[str, tuple[Rounding, Rounding, bool]] = {
    "bfloat16": (wide, wide, False),
    "e4m3": (E4M3, E4M3, False),
    "e4m3, keys alone": (E4M3, wide, False),
    "e4m3, values alone": (wide, E4M3, False),
    "e4m3, keys less their mean": (E4M3, E4M3, True),
    "e5m2": (E5M2, E5M2, False),
    "int8, a scale a row": (whole, whole, False),
}


def measured(model: Any, text: Text, means: list[torch.Tensor]) -> Iterator[dict[str, Any]]:
    """A row for each way; `means` [1, H, 1, D] of the layers' keys."""
    prompt = _prompt(model, text.ids[: text.prompt])
    following = torch.tensor(text.ids[text.prompt + 1 :])
    plain = None
    for name, (of_keys, of_values, centred) in WAYS.items():
        about = means if centred else [torch.zeros(())] * len(means)
        logs = _forced(model, text, [(of_keys, of_values, mean) for mean in about], prompt)
        plain = logs if plain is None else plain
        loss = [-each.gather(1, following[:, None]).mean() for each in (logs, plain)]
        yield {
            "way": name,
            "kind": text.kind,
            "nll_difference": float(loss[0] - loss[1]),
            "kl": float((plain.exp() * (plain - logs)).sum(-1).mean()),
            "same_first": float((plain.argmax(-1) == logs.argmax(-1)).float().mean()),
        }


def _prompt(model: Any, ids: tuple[int, ...]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """By layer, keys and values [1, H, L, D]."""
    cache = model(torch.tensor(ids)[None], use_cache=True).past_key_values
    return [(layer.keys, layer.values) for layer in cache.layers]


def _forced(
    model: Any, text: Text, ways: list[tuple[Rounding, Rounding, torch.Tensor]],
    prompt: list[tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:  # fmt: skip
    """Log probabilities [steps, V] of the words after each token behind the prompt."""
    from transformers.cache_utils import DynamicCache

    cache, logits = DynamicCache(), []
    for number, ((of_keys, of_values, mean), (keys, values)) in enumerate(zip(ways, prompt, strict=True)):
        cache.update(of_keys(keys - mean) + mean, of_values(values), number)
    for token in text.ids[text.prompt : -1]:
        logits.append(model(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits[0, -1])
        for (of_keys, of_values, mean), layer in zip(ways, cache.layers, strict=True):
            layer.keys[:, :, -1:] = of_keys(layer.keys[:, :, -1:] - mean) + mean
            layer.values[:, :, -1:] = of_values(layer.values[:, :, -1:])
    return torch.stack(logits).log_softmax(-1)


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    return (
        f"{row['kind']:<14}{row['way']:<28}loss {row['nll_difference']:+.4f}  KL {row['kl']:.4f}  "
        f"same first choice {100 * row['same_first']:.1f}%"
    )


if __name__ == "__main__":
    main()
