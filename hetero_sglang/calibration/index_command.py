"""`hetero-sglang profile index MODEL --profile FILE`: a key index for a profile that has its roles already."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hetero_sglang.calibration.checkpoint import read_shape
from hetero_sglang.calibration.index_options import add_index_options, read_index_options
from hetero_sglang.calibration.summary import index_line
from hetero_sglang.calibration.text_options import add_text_options, read_text_options, warn_of_built_in_text
from hetero_sglang.config.parser import Parser
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.files import check_writable, load_profile, save_profile
from hetero_sglang.profile.fingerprint import mismatch
from hetero_sglang.profile.local_model import local_folder


def index(argv: list[str]) -> int:
    """Prefills the calibration text; roles and measurements stay as they are."""
    parser = Parser("hetero-sglang profile index", "Give a profile the key index of its model, or another one.")
    parser.add_argument("model", help="local Hugging Face checkpoint that the profile is of")
    parser.add_argument("--profile", required=True, metavar="FILE", help="profile that gets the index")
    parser.add_argument("--out", metavar="FILE", help="profile to write (default: the one read)")
    add_text_options(parser)
    add_index_options(parser)
    args = parser.parse_args(argv)
    model = local_folder(args.model) or args.model
    shape = read_shape(model)
    options = read_index_options(args, shape)
    profile, out = load_profile(args.profile), Path(args.out or args.profile)
    profile.check_model(shape.num_layers, shape.num_query_heads, shape.num_kv_heads, shape.head_dim, name=args.profile)
    if found := mismatch(profile.provenance, args.profile, model):
        raise HeteroError(found)
    check_writable(out)

    # torch and transformers take seconds to import.
    from tqdm import tqdm

    from hetero_sglang.calibration.checkpoint import open_checkpoint
    from hetero_sglang.calibration.moments import prefill

    checkpoint = open_checkpoint(model, args.device)
    documents = read_text_options(args).documents(checkpoint, shape, steps=0)
    warn_of_built_in_text(args)
    total = sum(len(document.tokens) for document in documents)
    bar_format = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left"
    label = f"{len(documents)} documents"
    with tqdm(total=total, desc=label, disable=args.quiet, mininterval=0.5, bar_format=bar_format) as bar:
        moments = prefill(checkpoint, documents, bar.update)
    texts = [{"source": d.source, "sha256": d.sha256, "tokens": len(d.tokens)} for d in documents]
    profile = replace(
        profile,
        head_dim=shape.head_dim,
        num_query_heads=shape.num_query_heads,
        index=options.plan(checkpoint, documents, moments),
        provenance={**profile.provenance, "index_texts": texts, "index_context": options.context},
    )
    save_profile(profile, out)
    print(f"wrote {out}: {index_line(profile)}")
    return 0
