"""The policy and the head profile that a server's flags ask for."""

from dataclasses import replace
from typing import Any

from hetero_sglang.config.defaults import MONITOR_INTERVAL
from hetero_sglang.errors import HeteroError
from hetero_sglang.policy.base import Policy, Refresh
from hetero_sglang.policy.heterocache import HeteroCache, IndexedHeads
from hetero_sglang.policy.registry import POLICIES
from hetero_sglang.profile.ablation import ABLATIONS, alike
from hetero_sglang.profile.clusters import heads_per_rank
from hetero_sglang.profile.files import load_profile
from hetero_sglang.profile.fingerprint import mismatch
from hetero_sglang.profile.head_profile import HeadProfile
from hetero_sglang.profile.local_model import has_weights, local_folder
from hetero_sglang.profile.ratio import choices, choose, topk_share
from hetero_sglang.profile.thresholds import classify
from hetero_sglang.sglang.adapters import adapter_profiles
from hetero_sglang.sglang.interface import Configuration
from hetero_sglang.sglang.version import installed

configuration: Configuration = installed("configuration")

EIGHT_BITS = ("fp8_e4m3", "fp8_e5m2")  # of --kv-cache-dtype
AUTO = "auto"  # of a profile: the one that is found, else one made at start
RESOLVED = (  # by `settings.resolve`, under these names
    "keep_ratio", "window", "sink", "dense_below", "drift_threshold", "retrieval", "reassign", "decode_kernel",
    "append",
)  # fmt: skip


def reads_profile(name: str) -> bool:
    """Whether the policy of that name tells heads apart."""
    return POLICIES[name] is HeteroCache


def make_policy(name: str, ablation: str = "none", indexed: bool = False) -> Policy:
    """The policy of that name. Raises HeteroError for an ablation of another policy than heterocache's own."""
    if indexed and ablation != "none":
        raise HeteroError(
            f"--hetero-ablation {ablation} leaves out an idea that heads with a key index do without; drop it, or add "
            f"--hetero-index none."
        )
    if POLICIES[name] is HeteroCache:
        return IndexedHeads() if indexed else HeteroCache(layerwise=ablation == "layer-wise")
    if ablation != "none":
        raise HeteroError(f"--hetero-ablation {ablation} is one of heterocache's, not of {name}; drop it.")
    return POLICIES[name]()


def policy_of(args: Any) -> Policy:
    """The policy that the flags name."""
    return make_policy(args.kv_policy, args.hetero_ablation, indexed(args))


def options_of(args: Any) -> tuple[HeadProfile, dict[str, Any]]:
    """The head profile and the keyword arguments of `settings.resolve`."""
    policy, interval = policy_of(args), args.hetero_monitor_interval
    if interval is None:
        interval = 1 if policy.refresh is Refresh.STEP else MONITOR_INTERVAL
    options = {name: getattr(args, f"hetero_{name}") for name in RESOLVED}
    profile = profile_for(policy, args)
    found = {"policy": policy, "monitor_interval": interval, "itemsize": item_bytes(args), "drafts": drafts_of(args)}
    return profile, {**options, **found, "adapters": adapter_profiles(args, policy, profile, shape_of(args))}


def drafts_of(args: Any) -> int:
    """Tokens that are verified at once, at most, but for the first of each request."""
    if args.speculative_algorithm is None or not args.speculative_num_draft_tokens:
        return 0
    return int((args.speculative_num_draft_tokens - 1) * (args.max_running_requests or 1))


def item_bytes(args: Any) -> int:
    """Of a number of K or V as the stores hold it (--kv-cache-dtype)."""
    if args.kv_cache_dtype in EIGHT_BITS:
        return 1
    wide: int = configuration.model_config(args).dtype.itemsize
    return wide if args.kv_cache_dtype == "auto" else 2


def shape_of(args: Any) -> tuple[int, int, int, int]:
    """Layers, query heads, KV heads and dimensions per head of the model."""
    config = configuration.model_config(args)
    return config.num_hidden_layers, config.num_attention_heads, config.get_total_num_kv_heads(), config.head_dim


def indexed(args: Any) -> bool:
    """Whether heads find their rows by a key index. Raises HeteroError where one is asked for that is not there."""
    if args.hetero_index == "none":
        return False
    if not reads_profile(args.kv_policy):
        if args.hetero_index == "directions":
            raise HeteroError(f"--hetero-index directions is not read by --kv-policy {args.kv_policy}; drop it.")
        return False
    found = load_profile(args.hetero_profile).index is not None
    if not found and args.hetero_index == "directions":
        raise HeteroError(
            f"{args.hetero_profile} has no key index: make one with `hetero-sglang profile`, or serve without by "
            f"--hetero-index none."
        )
    return found


def decide_for(profile: HeadProfile, keep_ratio: float, ranks: int = 1) -> HeadProfile:
    """The same heads with the roles that lose least at this ratio, pivots on their satellites' rank.

    Raises HeteroError without measurements."""
    measured = profile.measurements
    if measured is None:
        raise HeteroError(
            "--hetero-roles ratio decides from a profile's measurements, and this profile has none: leave it out, or "
            "make one with `hetero-sglang profile`."
        )
    per_rank = heads_per_rank(profile.num_kv_heads, ranks)
    taken = choose(choices(measured, topk_share(profile.provenance), per_rank), keep_ratio)
    return replace(profile, layers=classify(measured, taken.thresholds, per_rank))


def profile_for(policy: Policy, args: Any) -> HeadProfile:
    """Roles of the model's heads: from the head profile, or all alike where a policy knows none.

    `args`: SGLang's arguments, with ours. Raises HeteroError where there is no profile, one of another model, or one
    that nobody reads."""
    layers, query_heads, kv_heads, head_dim = shape = shape_of(args)
    if policy.roles or policy.refresh is Refresh.LAZY:
        path = args.hetero_profile
        profile = load_profile(path)
        profile.check_model(*shape, name=path)
        if not policy.roles:
            return alike(layers, kv_heads, query_heads, head_dim, profile.index)
        if args.hetero_roles == "ratio" and 0 < args.hetero_keep_ratio < 1:
            try:
                profile = decide_for(profile, args.hetero_keep_ratio, args.tp_size)
            except HeteroError as error:
                raise HeteroError(f"{path}: {error}") from None
        return ABLATIONS[args.hetero_ablation](profile)
    if args.hetero_profile != AUTO:
        raise HeteroError(f"--hetero-profile is not read by --kv-policy {policy.name}, whose heads are alike; drop it.")
    return alike(layers, kv_heads, query_heads, head_dim)


def profile_warning(args: Any) -> str | None:
    """What is doubtful about the profile that `profile_for` reads: that it is of other weights of the model's shape.
    None where nothing is, and where weights or profile do not say. Reads a few samples of every weight file."""
    path, folder = args.hetero_profile, local_folder(args.model_path, args.revision)
    if not reads_profile(args.kv_policy) or folder is None or not has_weights(folder):
        return None
    try:
        return mismatch(load_profile(path).provenance, path, folder)
    except HeteroError as error:
        return f"it cannot be told whether {path} is of the weights of {args.model_path}: {error}"
