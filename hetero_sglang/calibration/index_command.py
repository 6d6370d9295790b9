"""`hetero-sglang profile index MODEL --profile FILE`: a key index for a profile that has its roles already."""

from dataclasses import replace
from pathlib import Path

from hetero_sglang.calibration.checkpoint import check_profile, open_checkpoint, read_shape
from hetero_sglang.calibration.index_options import add_index_options, read_index_options
from hetero_sglang.calibration.summary import index_line
from hetero_sglang.calibration.text_options import add_text_options, progress, read_documents
from hetero_sglang.config.parser import Parser
from hetero_sglang.profile.files import check_writable, load_profile, save_profile
from hetero_sglang.profile.local_model import local_folder


def index(argv: list[str]) -> None:
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
    check_profile(profile, args.profile, model)
    check_writable(out)

    checkpoint = open_checkpoint(model, args.device)
    documents = read_documents(args, checkpoint, shape)

    # torch takes seconds to import
    from hetero_sglang.calibration.runs import index_of

    with progress(args, documents) as bar:
        found = index_of(checkpoint, documents, options, bar.update)
    about = {"index_texts": [document.about for document in documents], "index_context": options.context}
    profile = replace(
        profile,
        head_dim=shape.head_dim,
        num_query_heads=shape.num_query_heads,
        index=found,
        provenance={**profile.provenance, **about},
    )
    save_profile(profile, out)
    print(f"wrote {out}: {index_line(profile)}")
