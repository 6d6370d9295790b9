"""Estimates as tables: Markdown that a terminal shows as well."""

from __future__ import annotations

from collections.abc import Sequence

from hetero_sglang.sizing.estimate import LENGTHS, Estimate


def tiers(one: Estimate) -> str:
    """Bytes of a token by tier, on each GPU and beside it."""
    sizes = one.sizes
    rows = [
        ("resident store", "GPU", sizes.resident_bytes_per_slot),
        ("hot pool", "GPU", round(sizes.hot_bytes / sizes.slots)),
        ("key index", "GPU", sizes.index_bytes_per_slot),
        ("host store", "host", sizes.host_bytes_per_slot),
        ("plain SGLang", "GPU", one.dense_cell),
    ]
    return aligned([("tier", "where", "bytes per token"), *((name, at, f"{count:,}") for name, at, count in rows)])


def memories(estimates: Sequence[Estimate]) -> str:
    """A column for each GPU memory."""
    rows = [
        ("GPU memory, GiB", [f"{each.memory:g}" for each in estimates]),
        ("`--mem-fraction-static`", [f"{each.fraction:g}" for each in estimates]),
        ("left for KV, GB", [f"{each.kv_bytes / 1e9:.1f}" for each in estimates]),
        ("of which workspaces, GB", [f"{each.workspaces / 1e9:.1f}" for each in estimates]),
        ("token slots, plain SGLang", [f"{each.dense_slots:,}" for each in estimates]),
        ("token slots, heterocache", [f"{each.slots:,}" for each in estimates]),
    ]
    for length in LENGTHS:
        if length <= estimates[0].context:
            both = [f"{each.dense_at_once(length)}, {each.at_once(length)}" for each in estimates]
            rows.append((f"{length >> 10}K at once: plain, heterocache", both))
    rows.append(("host memory per GPU, GB", [f"{each.host_bytes / 1e9:.1f}" for each in estimates]))
    return aligned([(name, *cells) for name, cells in rows])


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table of rows, the first of which is its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
