"""The card of a trained navigation model."""

from __future__ import annotations

from typing import Any

from .words import WORDS

_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags:
- llama
- kv-cache
- navigation
- synthetic
---

# {name}

A Llama of {millions:.1f} million parameters that finds its way through partially observed worlds: rooms along a
corridor, doors that are open, closed or locked, keys, a goal, and balls that roam. It reads the history of all that it
has seen, as text, and writes what it wants, where that is, the next cell on the way there, and an action. It exists to
measure what small machines need: long histories, few bytes, and tokens that are easy and tokens that are not.

```
at x3 y7 east nothing <49 cells> sees key-red x5 y3 so   key-red x5 y3 x4 y7 forward
```

Which way to go with a key hangs on where its door was seen, perhaps a hundred turns and 6,000 tokens ago.

## Use

```
python -m benchmarks.navigation --model {folder}                   # play, measure, compare
python -m sglang.launch_server --model-path {folder}               # serve it like any Llama
```

## How it was made

| | |
|---|---|
| architecture | Llama: {layers} layers, hidden size {width}, {query_heads} query and {kv_heads} KV heads of size 64, \
MLP {ffn}, RoPE base 1,000,000, untied embeddings |
| parameters | {parameters:,}, bfloat16 |
| tokenizer | {words} words, one token each |
| data | episodes of an expert that knows what it has seen (minigrid's worlds, `benchmarks/navigation/expert.py`), \
drawn on the fly; a turn went wrong with likelihood {slips:g}, the next ones then by half |
| loss | next token, weight 1 on the expert's replies, 0.2 on places of things seen, 0.02 on all else |
| stages | {stages} (rooms a side: share of the time; 0: turns that stand alone) |
| training | {steps:,} steps, {tokens:.0f} million tokens, {minutes:.1f} minutes on {device} |
| command | `{command}` |

No text by or about people was used; there is nothing personal or copyrighted to repeat.

## Played

Worlds that were not trained on, greedy; efficiency is the expert's steps over the agent's, 0 where the goal was not
reached.

| rooms a side | episodes | success | efficiency | steps into a hazard, of 100 | into walls and doors | tokens |
|---|---|---|---|---|---|---|
{played}

## Limits

- It knows nothing but this language and these worlds: one corridor, up to {rooms} rooms on each side, walked from the
  west.
- A method that keeps this model's success is not thereby shown to keep a large model's.

Licence: Apache-2.0, weights, tokenizer and data generator alike.
"""


def card(name: str, record: dict[str, Any]) -> str:
    """README.md of a model, from what training.json says of it."""
    shape, totals = record["shape"], record["totals"]
    lines = [
        f"| {row['rooms']} | {row['episodes']} | {row['success']:.3f} | {row['efficiency']:.3f} | "
        f"{row['hits_per_100_steps']:.2f} | {row['bumps_per_100_steps']:.2f} | {row['mean_tokens']:,.0f} |"
        for row in record["played"]
    ]
    return _CARD.format(
        name=name,
        folder=f"assets/{name}",
        millions=shape["parameters"] / 1e6,
        words=len(WORDS),
        slips=record["slips"],
        stages=record["settings"]["stages"],
        steps=totals["steps"],
        tokens=totals["tokens"] / 1e6,
        minutes=totals["seconds"] / 60,
        device=record["device"],
        command=record["command"],
        rooms=record["layout"]["rooms"],
        played="\n".join(lines),
        **{key: shape[key] for key in ("layers", "width", "query_heads", "kv_heads", "ffn", "parameters")},
    )
