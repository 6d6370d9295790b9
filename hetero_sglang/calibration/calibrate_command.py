"""`hetero-sglang profile MODEL`: calibrate a checkpoint and write its head profile."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetero_sglang.calibration.checkpoint import Checkpoint, open_checkpoint, read_shape, tokenizer_hash
from hetero_sglang.calibration.documents import Document
from hetero_sglang.calibration.index_options import add_index_options, read_index_options
from hetero_sglang.calibration.role_options import add_role_options, read_role_options
from hetero_sglang.calibration.summary import index_line
from hetero_sglang.calibration.text_options import add_text_options, progress, read_documents
from hetero_sglang.calibration.versions import versions
from hetero_sglang.config.parser import Parser
from hetero_sglang.profile.files import PROFILE_NAME, check_writable, save_profile
from hetero_sglang.profile.fingerprint import fingerprint
from hetero_sglang.profile.head_profile import HeadProfile
from hetero_sglang.profile.local_model import local_folder

if TYPE_CHECKING:
    from hetero_sglang.calibration.calibrate import Plan


def calibrate(argv: list[str], verbs: str) -> None:
    """Calibrates; whatever can be refused without the model is refused before it is loaded."""
    args = _parser(verbs).parse_args(argv)
    model = local_folder(args.model) or args.model
    shape = read_shape(model)
    roles = read_role_options(args, shape.num_kv_heads)
    index = read_index_options(args, shape)
    check_writable(args.out)

    # torch and transformers take seconds to import.
    from hetero_sglang.calibration.calibrate import Plan, TopK
    from hetero_sglang.calibration.calibrate import calibrate as measure
    from hetero_sglang.calibration.observe import Observation
    from hetero_sglang.calibration.peak_memory import PeakMemory

    observation = Observation(args.window, args.pooling, args.gqa)
    plan = Plan(args.steps, TopK(args.topk, args.topk_share), observation, args.smoothing, args.measure)
    checkpoint = open_checkpoint(model, args.device)
    documents = read_documents(args, checkpoint, shape)
    about = _provenance(model, checkpoint, documents, plan)
    peak = PeakMemory(checkpoint.device)
    with progress(args, documents) as bar:
        measured, found = measure(checkpoint, documents, plan, index, bar.update)
    print(f"peak memory beyond the weights: {peak.beyond() / 1e6:.0f} MB ({checkpoint.device})")

    layers, about, table = roles.decide(measured, about)
    print(table)
    profile = HeadProfile(
        shape.num_layers,
        shape.num_kv_heads,
        shape.num_query_heads,
        shape.head_dim,
        layers,
        {**about, "index_context": index.context},
        measured,
        found,
    )
    save_profile(profile, args.out)
    print(f"wrote {Path(args.out)}")
    print(
        f"{'by pivots (--hetero-index none)' if profile.index else 'by pivots'}: tau-stable {about['tau_stable']:g}, "
        f"tau-sim {about['tau_sim']:g}, {profile.num_resident} of {profile.num_heads} heads resident, keep ratios "
        f"above {profile.floor:.4f} are possible"
    )
    print(index_line(profile))


def _parser(verbs: str) -> argparse.ArgumentParser:
    parser = Parser(
        "hetero-sglang profile",
        f"Find out what each KV head of a model does. Other verbs in place of MODEL: {verbs}.",
    )
    add = parser.add_argument
    add("model", help="local Hugging Face checkpoint (docs/models.md)")
    add_text_options(parser)
    add("--out", default=PROFILE_NAME, help="profile to write (default %(default)s)")
    add(
        "--steps",
        type=int,
        default=64,
        help="last tokens of a document, each taken for a decode step (default %(default)s)",
    )
    add("--topk", type=int, metavar="N", help="keys in a head's set (default: --topk-share)")
    add("--topk-share", type=float, default=0.2, help="a share of the prompt, at most 1024 keys (default 0.2)")
    add("--window", type=int, default=16, help="last prompt queries that choose the prefill set (default 16)")
    add("--smoothing", type=int, default=16, help="decode steps averaged into a step's set (default 16)")
    add("--measure", default="keys",
        help="keys: what sets share, as in the paper; output: what a layer's output keeps (default %(default)s)",
    )  # fmt: skip
    add("--pooling", type=int, default=5, help="neighbouring keys averaged (default %(default)s)")
    add("--gqa", default="mean", help="mean or max over the query heads of a KV head (default %(default)s)")
    add_role_options(parser)
    add_index_options(parser)
    return parser


def _provenance(model: Path | str, checkpoint: Checkpoint, documents: list[Document], plan: Plan) -> dict[str, Any]:
    """Model, texts and settings; no dates, so that the same run gives the same file."""
    return {
        "model": Path(model).resolve().name,
        "fingerprint": fingerprint(model),
        "tokenizer": tokenizer_hash(model),
        "texts": [{**document.about, "topk": plan.sizes(document)[1]} for document in documents],
        "steps": plan.steps,
        "smoothing": plan.smoothing,
        "measure": plan.measure,
        "window": plan.observation.window,
        "pooling": plan.observation.pooling,
        "gqa_reduction": plan.observation.reduction,
        "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
        "device": checkpoint.device.type,
        "versions": versions(),
    }
