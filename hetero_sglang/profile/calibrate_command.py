"""`hetero-sglang profile MODEL`: calibrate a checkpoint and write its head profile."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hetero_sglang.cli import Parser
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.checkpoint import read_shape
from hetero_sglang.profile.choice import choices, choose, frontier
from hetero_sglang.profile.clusters import heads_per_rank
from hetero_sglang.profile.files import PROFILE_NAME, check_writable, save_profile
from hetero_sglang.profile.measurements import Measurements
from hetero_sglang.profile.thresholds import Thresholds


def run(argv: list[str], verbs: str) -> int:
    """Calibrates; all options are checked before the model is loaded."""
    args = _parser(verbs).parse_args(argv)
    given = Thresholds(args.tau_stable or 0.5, args.tau_sim or 0.5) if args.target_keep_ratio is None else None
    if given is None and (args.tau_stable, args.tau_sim) != (None, None):
        raise HeteroError("`--target-keep-ratio` chooses the thresholds; leave `--tau-stable` and `--tau-sim` out.")
    if args.target_keep_ratio is not None and not 0.0 < args.target_keep_ratio < 1.0:
        raise HeteroError(f"`--target-keep-ratio` is {args.target_keep_ratio:g}; choose a share between 0 and 1.")
    shape = read_shape(args.model)
    per_rank = heads_per_rank(shape.num_kv_heads, args.per_rank)
    out = Path(args.out)
    check_writable(out)

    # Slow imports only once the cheap checks have passed.
    from tqdm import tqdm

    from hetero_sglang.profile.calibrate import Plan, TopK, calibrate
    from hetero_sglang.profile.checkpoint import open_checkpoint
    from hetero_sglang.profile.making import Source, assign_roles, describe_source
    from hetero_sglang.profile.observe import Observation
    from hetero_sglang.profile.peak_memory import PeakMemory

    plan = Plan(args.steps, TopK(args.topk, args.topk_share), Observation(args.window, args.pooling, args.gqa))
    source = Source(tuple(args.text), args.length and tuple(args.length), args.documents, args.seed)
    checkpoint = open_checkpoint(args.model, args.device)
    documents = source.documents(checkpoint, shape, plan.steps)
    if not args.text:
        print("warning: calibrating on built-in text; roles found on text of your own fit it better (--text FILE).",
              file=sys.stderr)  # fmt: skip
    peak = PeakMemory(checkpoint.device)
    with tqdm(total=plan.cost(documents), desc=f"{len(documents)} documents", unit="tok", unit_scale=True,
              disable=args.quiet) as bar:  # fmt: skip
        measured = calibrate(checkpoint, documents, plan, bar.update)
    print(f"peak memory beyond the weights: {peak.beyond() / 1e6:.0f} MB on {checkpoint.device}")
    if given is None:
        options = choices(measured, per_rank)
        given = choose(options, args.target_keep_ratio).thresholds
    about = describe_source(args.model, checkpoint, documents, plan)
    profile = assign_roles(shape, measured, given, args.per_rank, about, args.target_keep_ratio)
    save_profile(profile, out)
    print(_table(measured, per_rank))
    print(f"wrote {out}: thresholds {given.stable:g} (stability) and {given.similar:g} (similarity), "
          f"{profile.num_resident} of {profile.num_heads} heads resident, floor {profile.floor:.4f}")  # fmt: skip
    return 0


def _table(measured: Measurements, per_rank: int | None) -> str:
    """What keep ratios other thresholds would allow, and their loss."""
    best = frontier(choices(measured, per_rank))
    step = max(1, (len(best) + 11) // 12)
    shown = best[::step] if best[-1] in best[::step] else [*best[::step], best[-1]]
    lines = ["least keep ratio   floor   loss in overlap   tau-stable   tau-sim"]
    lines += [
        f"{c.least_keep_ratio:16.3f}   {c.floor:5.3f}   {c.loss:15.3f}   {c.thresholds.stable:10.2f}   "
        f"{c.thresholds.similar:7.2f}"
        for c in shown
    ]
    return "\n".join(lines)


def _parser(verbs: str) -> argparse.ArgumentParser:
    parser = Parser(
        "hetero-sglang profile", f"Find out what each KV head of a model does. Other verbs in place of MODEL: {verbs}."
    )
    add = parser.add_argument
    add("model", help="local Hugging Face checkpoint (Llama, Mistral, Qwen2, Qwen3)")
    add("--text", nargs="+", default=[], metavar="FILE", help="UTF-8 calibration texts (default: built-in text)")
    add("--out", default=PROFILE_NAME, help="profile to write (default %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default %(default)s)")
    add("--length", type=int, nargs="+", default=None, help="prompt lengths in tokens (default 2048 4096)")
    add("--documents", type=int, default=8, help="built-in documents (default %(default)s)")
    add("--seed", type=int, default=0, help="seed of the first built-in document (default %(default)s)")
    add("--steps", type=int, default=64, help="decode steps per document (default %(default)s)")
    add("--topk", type=int, default=None, metavar="N", help="keys in a head's set (default: --topk-share)")
    add("--topk-share", type=float, default=0.2, help="the same as a share of the prompt, at most 1024 keys "
        "(default %(default)s)")  # fmt: skip
    add("--window", type=int, default=16, help="last prompt queries that choose the prefill set; 1 is the reference's "
        "(default %(default)s)")  # fmt: skip
    add("--pooling", type=int, default=5, help="neighbouring keys averaged (default %(default)s)")
    add("--gqa", default="mean", help="mean or max over the query heads of a KV head (default %(default)s)")
    add("--tau-stable", type=float, default=None, help="stability from which a lone head is an anchor (default 0.5)")
    add("--tau-sim", type=float, default=None, help="similarity from which heads are neighbours (default 0.5)")
    add("--target-keep-ratio", type=float, default=None, metavar="R", help="choose the thresholds: least loss in "
        "overlap that allows R")  # fmt: skip
    add("--per-rank", type=int, default=None, metavar="N", help="cluster inside the heads of each of N "
        "tensor-parallel ranks")  # fmt: skip
    add("--quiet", action="store_true", help="no progress bar")
    return parser
