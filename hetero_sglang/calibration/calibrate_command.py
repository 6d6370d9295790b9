"""`hetero-sglang profile MODEL`: calibrate a checkpoint and write its head profile."""

from __future__ import annotations

import argparse
from pathlib import Path

from hetero_sglang.calibration.checkpoint import read_shape
from hetero_sglang.calibration.index_options import add_index_options, read_index_options
from hetero_sglang.calibration.role_options import add_role_options, read_role_options
from hetero_sglang.calibration.summary import index_line
from hetero_sglang.calibration.text_options import add_text_options, read_text_options, warn_of_built_in_text
from hetero_sglang.config.parser import Parser
from hetero_sglang.profile.clusters import heads_per_rank
from hetero_sglang.profile.files import PROFILE_NAME, check_writable, save_profile
from hetero_sglang.profile.head_profile import HeadProfile
from hetero_sglang.profile.local_model import local_folder


def run(argv: list[str], verbs: str) -> int:
    """Calibrates; whatever can be refused without the model is refused before it is loaded."""
    args = _parser(verbs).parse_args(argv)
    args.model = local_folder(args.model) or args.model
    shape = read_shape(args.model)
    options = read_role_options(args, shape.num_kv_heads)
    index = read_index_options(args, shape)
    out = Path(args.out)
    check_writable(out)

    # torch and transformers take seconds to import.
    from tqdm import tqdm

    from hetero_sglang.calibration import provenance
    from hetero_sglang.calibration.calibrate import Plan, TopK, calibrate
    from hetero_sglang.calibration.checkpoint import open_checkpoint
    from hetero_sglang.calibration.moments import Moments
    from hetero_sglang.calibration.observe import Observation
    from hetero_sglang.calibration.peak_memory import PeakMemory
    from hetero_sglang.profile.ratio import topk_share
    from hetero_sglang.profile.thresholds import classify

    observation = Observation(args.window, args.pooling, args.gqa)
    plan = Plan(args.steps, TopK(args.topk, args.topk_share), observation, args.smoothing, args.measure)
    source = read_text_options(args)
    checkpoint = open_checkpoint(args.model, args.device)
    documents = source.documents(checkpoint, shape, plan.steps)
    about = provenance.of_measurement(args.model, checkpoint, documents, plan)
    warn_of_built_in_text(args)
    peak = PeakMemory(checkpoint.device)
    bar_format = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left"
    moments = Moments(shape.num_layers)
    label, total = f"{len(documents)} documents", plan.cost(documents)
    with tqdm(total=total, desc=label, disable=args.quiet, mininterval=0.5, bar_format=bar_format) as bar:
        measured = calibrate(checkpoint, documents, plan, bar.update, moments)
    print(f"peak memory beyond the weights: {peak.beyond() / 1e6:.0f} MB ({checkpoint.device})")

    thresholds, table = options.decide(measured, topk_share(about))
    print(table)
    layers = classify(measured, thresholds, heads_per_rank(shape.num_kv_heads, options.ranks))
    about |= provenance.of_decision(thresholds, options) | {"index_context": index.context}
    profile = HeadProfile(
        shape.num_layers,
        shape.num_kv_heads,
        shape.num_query_heads,
        shape.head_dim,
        layers,
        about,
        measured,
        index.plan(checkpoint, documents, moments),
    )
    save_profile(profile, out)
    print(
        f"wrote {out}: tau-stable {thresholds.stable:g}, tau-sim {thresholds.similar:g}, "
        f"{profile.num_resident} of {profile.num_heads} heads resident, "
        f"keep ratios above {profile.floor:.4f} are possible"
    )
    print(index_line(profile))
    return 0


def _parser(verbs: str) -> argparse.ArgumentParser:
    parser = Parser(
        "hetero-sglang profile",
        f"Find out what each KV head of a model does. Other verbs in place of MODEL: {verbs}.",
    )
    add = parser.add_argument
    add("model", help="local Hugging Face checkpoint (Llama, Mistral, Qwen2, Qwen3)")
    add_text_options(parser)
    add("--out", default=PROFILE_NAME, help="profile to write (default %(default)s)")
    add("--steps", type=int, default=64, help="decode steps per document (default %(default)s)")
    add("--topk", type=int, metavar="N", help="keys in a head's set (default: --topk-share)")
    add("--topk-share", type=float, default=0.2, help="a share of the prompt, at most 1024 keys (default 0.2)")
    add("--window", type=int, default=16, help="last prompt queries that choose the prefill set (default 16)")
    add("--smoothing", type=int, default=16, help="decode steps averaged into a step's set (default 16)")
    add(
        "--measure",
        default="keys",
        help="keys: what sets share, as in the paper; output: what a layer's output keeps (default %(default)s)",
    )
    add("--pooling", type=int, default=5, help="neighbouring keys averaged (default %(default)s)")
    add("--gqa", default="mean", help="mean or max over the query heads of a KV head (default %(default)s)")
    add_role_options(parser)
    add_index_options(parser)
    return parser
