"""The text of a trained model's card, with gaps that `Record` fills."""

from __future__ import annotations

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags:
- llama
- kv-cache
- long-context
- synthetic
---

# {name}

A Llama of {millions} million parameters that can do one thing: read a long synthetic text with numbered entries in
it, and say what they say. It exists to measure KV caches: a policy that drops or delays a row which an answer needs
shows at once as a wrong name or number.

```
 The broken lantern follows the Entry Desu 590 314. The bright castle watches the Entry Rube 863 Mire. The velvet ...
Question: Kofa, Desu?
Answer: Kofa 863 870, Desu 590 314

Question: Rube 3?
Answer: Rube 863, Mire 230, Noka 482
```

A question names entries, and the answer repeats each with its two numbers. An entry may be stated again with new
numbers: the latest count. Entries whose second number is a name are links of a chain: `Rube 3` asks for three of
them, each found only by reading the one before. Every name, number and count is one token.

A prompt is `<s>`, the document, then the question down to `Answer:`; decode greedily to the first newline. In chat
form the document is the system message and `Kofa, Desu` or `Rube 3` the user's. `benchmarks/recall` has documents,
questions, scoring and the training.

## How it was made

```
{command}
```

| | |
|---|---|
| architecture | Llama: {shape.layers} layers, hidden size {shape.width}, {shape.query_heads} query and \
{shape.kv_heads} KV heads of size 64, MLP {shape.ffn}, RoPE base {shape.theta:,.0f}, untied embeddings |
| parameters | {parameters}, bfloat16 |
| seed | {settings.seed} |
| data | samples drawn on the fly by `benchmarks/recall/mixed_sampler.py`: questions at the end and, in half of the \
samples, in between; kinds plain {mix.plain:g}, chain {mix.chain:g}, update {mix.update:g}; {mix.long:g} of the list \
questions with 9 to 64 names where they fit, {mix.dense:g} of the samples dense |
| loss | next token, weight 1 on answers and 0.05 on all other text |
| optimizer | AdamW, peak rate {settings.rate:g}, {settings.warmup} warm-up steps, cosine decay, weight decay \
{settings.weight_decay:g}, gradient norm clipped at {settings.clip:g} |
| initial values | embeddings with standard deviation {settings.embedding_std:g} |
| tokens per sample | {stages} |
| training | {steps} steps, {tokens} tokens, {time} |

No text by or about people was used; there is nothing personal or copyrighted to repeat.

## Accuracy

Answer tokens right, given the right beginning / whole answers right, which is what greedy decoding gets right; on
fresh samples of the training's distribution:

{accuracy}

## Limits

- It knows nothing but this language: 1,024 names, the numbers 100 to 999, counts of 2 to 16.
- Lengths that it was not trained on are unchecked; `max_position_embeddings` is larger so that they can be sent.
- A policy that keeps this model's answers right is not thereby shown to keep a large model's. Use it to find
  mistakes and to compare policies, and measure quality on the model that you serve.

Licence: Apache-2.0, weights, tokenizer and data generator alike.
"""
