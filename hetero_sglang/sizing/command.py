"""`hetero-sglang size MODEL --gpu-memory GIB ...`: what fits, and how much host memory it takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hetero_sglang.config.defaults import KEEP_RATIO
from hetero_sglang.config.parser import Parser
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.files import find_profile, load_profile
from hetero_sglang.profile.head_profile import HeadProfile
from hetero_sglang.profile.local_model import local_folder
from hetero_sglang.profile.made_profiles import place
from hetero_sglang.sglang.asked import EIGHT_BITS
from hetero_sglang.sglang.static_memory import static_fraction
from hetero_sglang.sglang.weights import AUTO, stored_rows
from hetero_sglang.sizing.estimate import Estimate, settings_of
from hetero_sglang.sizing.model import Model, read_model
from hetero_sglang.sizing.table import memories, tiers
from hetero_sglang.sizing.typical import typical_profile


def run(argv: list[str]) -> int:
    """Prints assumptions and tables; loads no weights."""
    parser = Parser("hetero-sglang size", "Tell what fits a GPU's memory, and how much host memory it takes.")
    _add_options(parser)
    given = parser.parse_args(argv)
    if given.tp < 1:
        raise HeteroError(f"--tp {given.tp} is no number of GPUs; give 1 or more.")
    if given.host_size is not None and not 0 < given.host_size < 1e6:
        raise HeteroError(f"--host-size {given.host_size:g} GB is no size; give one above 0.")
    fraction = given.mem_fraction_static
    if fraction is not None and not 0 < fraction < 1:
        raise HeteroError(f"--mem-fraction-static {fraction:g} is not between 0 and 1; give one that is.")
    model = read_model(given.model)
    rows = stored_rows(local_folder(given.model)) if given.kv_cache_dtype == AUTO else given.kv_cache_dtype
    if rows in EIGHT_BITS:
        model = replace(model, item=1)
    context = model.shape.max_length if given.context_length is None else given.context_length
    if context < 1:
        raise HeteroError(f"--context-length {context} is too short; give 1 or more.")
    profile, about = _profile(given.model, model, given.profile)
    settings = settings_of(model, profile, given.keep_ratio, given.tp)
    estimates = []
    for memory in given.gpu_memory:
        if not 1 <= memory < 1e6:
            raise HeteroError(f"--gpu-memory {memory:g} GiB is no GPU's; give 1 or more.")
        share = static_fraction(memory * 1024, given.tp) if fraction is None else fraction
        estimates.append(Estimate(model, settings, context, memory, share, given.host_size))
    print("\n\n".join([_assumptions(estimates[0], about), tiers(estimates[0]), memories(estimates)]))
    return 0


def _add_options(parser: Parser) -> None:
    add = parser.add_argument
    add("model", help="folder with a config.json, or a Hugging Face name that is in the cache")
    add("--gpu-memory", type=float, nargs="+", required=True, metavar="GIB",
        help="memory of each GPU; several: a column each")  # fmt: skip
    add("--keep-ratio", type=float, default=KEEP_RATIO, metavar="R", help="--hetero-keep-ratio (default %(default)s)")
    add("--tp", type=int, default=1, metavar="N", help="tensor-parallel GPUs (default %(default)s)")
    add("--context-length", type=int, metavar="N", help="longest request (default: the model's)")
    add("--kv-cache-dtype", choices=("auto", "bfloat16", *EIGHT_BITS), default="auto",
        help="keys and values in 16 bits or 8; auto: as the checkpoint says (default %(default)s)")  # fmt: skip
    add("--profile", metavar="FILE", help="head profile (default: the one a server would find, else a typical one)")
    add("--mem-fraction-static", type=float, metavar="X",
        help="share of GPU memory for weights and KV (default: SGLang's own choice)")  # fmt: skip
    add("--host-size", type=float, metavar="GB",
        help="--hetero-host-size: host memory per GPU (default: what the token slots need)")  # fmt: skip


def _assumptions(one: Estimate, profile: str) -> str:
    """What the tables rest on."""
    model, shape, settings = one.model, one.model.shape, one.settings
    heads = f"{shape.num_layers} layers of {shape.num_kv_heads} KV heads of {shape.head_dim} dimensions"
    return "\n".join(
        [
            f"{model.name}: {heads}, {model.dtype}{', keys and values in 8 bits' if model.item == 1 else ''}",
            f"weights: {model.weights / 1e9:.2f} GB by {model.weights_from}, over {one.ranks} GPU(s)",
            f"profile: {profile}",
            f"keep ratio: {settings.keep_ratio:g}; prompts under {settings.rule.dense_below:,} tokens are kept whole",
            f"longest request: {one.context:,} tokens",
            "for KV: GPU memory x --mem-fraction-static - weights; what CUDA itself takes is not counted",
        ]
    )


def _profile(path: str, model: Model, given: str | None) -> tuple[HeadProfile, str]:
    """The profile to reckon with, and what it is."""
    found = find_profile(path, given) or _made(path)
    if found is None:
        return typical_profile(model.shape), "a typical one, as the model has none yet; its first start makes its own"
    profile, shape = load_profile(found), model.shape
    profile.check_model(shape.num_layers, shape.num_query_heads, shape.num_kv_heads, shape.head_dim, found)
    return profile, str(found)


def _made(path: str) -> Path | None:
    """The one that a server's first start made of the model."""
    folder = local_folder(path)
    kept = None if folder is None else place(folder)
    return kept if kept is not None and kept.exists() else None
