"""What the two-tier cache cannot serve, said at start with the legal recipe."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from hetero_sglang.cache.limits import free_host_bytes
from hetero_sglang.config.settings import resolve
from hetero_sglang.errors import HeteroError
from hetero_sglang.policy.base import Policy, Refresh
from hetero_sglang.profile.head_profile import HeadProfile
from hetero_sglang.sglang.asked import EIGHT_BITS, item_bytes, options_of, policy_of
from hetero_sglang.sglang.interface import Configuration, Flag
from hetero_sglang.sglang.version import installed, release

configuration: Configuration = installed("configuration")

MODELS = (
    "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Phi3ForCausalLM",
    "Olmo2ForCausalLM", "GemmaForCausalLM", "GraniteForCausalLM", "MixtralForCausalLM", "Qwen3MoeForCausalLM",
)  # fmt: skip
WINDOWED = ("MistralForCausalLM", "MixtralForCausalLM", "Phi3ForCausalLM")  # a window that is configured is used

HEAD_SIZES = (64, 128, 256)  # FlashInfer's
MAX_GROUP = 16  # query heads of a KV head: rows of the decode kernel's tile

# field of ServerArgs, values that are fine, what the flag is called and why it is refused
FLAGS: tuple[Flag, ...] = (
    ("enable_hierarchical_cache", (False,), "--enable-hierarchical-cache: the host tier is taken by the policy"),
    ("enable_lmcache", (False,), "--enable-lmcache: it reads dense K/V buffers"),
    ("enable_flexkv", (False,), "--enable-flexkv: it reads dense K/V buffers"),
    ("enable_hisparse", (False,), "--enable-hisparse: it is another sparse cache"),
    ("enable_unified_memory", (False,), "--enable-unified-memory: it owns the pools"),
    ("enable_page_major_kv_layout", (False,), "--enable-page-major-kv-layout: it fixes another K/V layout"),
    ("disaggregation_mode", ("null",), "--disaggregation-mode: it transfers dense K/V buffers"),
    ("enable_dp_attention", (False,), "--enable-dp-attention: not tested with per-head tiers"),
    ("pp_size", (1,), "--pp-size: not tested with per-head tiers"),
    ("dcp_size", (1,), "--dcp-size: not tested with per-head tiers"),
    ("attn_cp_size", (1,), "--attn-cp-size: not tested with per-head tiers"),
    ("enable_mixed_chunk", (False,), "--enable-mixed-chunk: decode rows inside a prefill batch are not planned"),
    ("enable_two_batch_overlap", (False,), "--enable-two-batch-overlap: one plan serves one batch"),
    ("enable_pdmux", (False,), "--enable-pdmux: one plan serves one batch"),
    ("enable_torch_compile", (False,), "--enable-torch-compile: the backend's plan is host code"),
    ("enable_memory_saver", (False,), "--enable-memory-saver: the tiers are not released with the weights"),
    ("enable_streaming_session", (False,), "--enable-streaming-session: it prefills behind generated tokens"),
    ("enable_mis", (False,), "--enable-mis: items of one prompt would attend to each other"),
    ("prefill_only_disable_kv_cache", (False,), "--prefill-only-disable-kv-cache: there would be nothing to keep"),
    ("dllm_algorithm", (None,), "--dllm-algorithm: it rewrites tokens in place"),
    ("is_embedding", (False,), "--is-embedding: an embedding model decodes nothing"),
    (
        "kv_cache_dtype",
        ("auto", "bf16", "bfloat16", "float16", *EIGHT_BITS),
        "--kv-cache-dtype: rows are kept as the model makes them, or in 8 bits",
    ),
    ("kv_canary", ("none",), "--kv-canary: it reads dense K/V buffers"),
    ("cpu_offload_gb", (0,), "--cpu-offload-gb: not tested with the host tier"),
    ("radix_cache_backend", (None,), "--radix-cache-backend: only SGLang's own radix tree is tested"),
    ("attention_backend", (None, "torch_native", "flashinfer"), "--attention-backend: the policy brings its own"),
    ("prefill_attention_backend", (None,), "--prefill-attention-backend: the policy brings its own"),
    ("decode_attention_backend", (None,), "--decode-attention-backend: the policy brings its own"),
    ("enable_deterministic_inference", (False,), "--enable-deterministic-inference: rankings arrive when they arrive"),
)  # fmt: skip


DRIFT, STEP, LAZY = Refresh.DRIFT, Refresh.STEP, Refresh.LAZY

# field of ours, whether a policy reads it, and why one that does not has no use for it
OPTIONS: tuple[tuple[str, Callable[[Policy], bool], str], ...] = (
    ("hetero_roles", lambda policy: policy.roles, "its heads are alike"),
    ("hetero_lora_profile", lambda policy: policy.roles or policy.refresh is LAZY, "its heads are alike"),
    ("hetero_drift_threshold", lambda policy: policy.refresh is DRIFT, "it has no pivots that watch for drift"),
    ("hetero_retrieval", lambda policy: policy.refresh in (DRIFT, STEP), "it fetches nothing, or always"),
    ("hetero_monitor_interval", lambda policy: policy.refresh in (DRIFT, STEP), "it chooses once, or in every step"),
)


# numbers of ours
_FLOATS = ("keep_ratio", "host_size", "drift_threshold", "exit_agreement")
_INTEGERS = ("window", "sink", "monitor_interval", "dense_below", "early_exit_max_batch")
NUMBERS: tuple[tuple[str, Any], ...] = (
    *((f"hetero_{name}", float) for name in _FLOATS),
    *((f"hetero_{name}", int) for name in _INTEGERS),
)
LARGEST = 1 << 31


def check_policy(args: Any) -> None:
    """Raises HeteroError for an option that the policy does not read, or that works on a GPU alone."""
    policy = policy_of(args)
    for name, reads, why in OPTIONS:
        value = getattr(args, name)
        if value != configuration.default(type(args), name) and not reads(policy):
            flag = name.replace("_", "-")
            paper = ", or add --hetero-index none" if policy.refresh is LAZY else ""
            raise HeteroError(f"--{flag} {value} is not read by --kv-policy {policy.name} ({why}); drop it{paper}.")
    if args.hetero_retrieval == "replace" and policy.refresh is not DRIFT:
        raise HeteroError(
            f"--hetero-retrieval replace is a rule for drift, and --kv-policy {policy.name} watches none; drop it."
        )
    if args.hetero_window < 2:
        raise HeteroError(
            f"--hetero-window {args.hetero_window} is too small: a step writes the window's newest row while the one "
            f"before it is still copied to the host; choose at least 2."
        )
    if args.attention_backend != "flashinfer" and args.hetero_decode_kernel != "auto":
        raise HeteroError(
            f"--hetero-decode-kernel {args.hetero_decode_kernel} is one for GPUs, and this server runs on torch alone; "
            f"drop it."
        )


def check_flags(args: Any) -> None:
    """Raises HeteroError for the first flag the design cannot serve."""
    for flag, value, why in refused(args, (*FLAGS, *configuration.FLAGS)):
        raise HeteroError(
            f"{flag} {value} does not work with --kv-policy {args.kv_policy} ({why}); drop it or use --kv-policy full."
        )


def refused(args: Any, flags: Iterable[Flag]) -> Iterator[tuple[str, Any, str]]:
    """Those of `flags` that have a value which is not fine: flag, value and why."""
    for name, fine, reason in flags:
        if (value := getattr(args, name)) not in fine:
            flag, why = reason.split(": ", 1)
            yield flag, value, why


def check_numbers(args: Any) -> None:
    """Raises HeteroError for a number of ours that is none, or that is too large to reckon with."""
    for name, kind in NUMBERS:
        value: Any = getattr(args, name)
        flag = f"--{name.replace('_', '-')}"
        if value is None and configuration.default(type(args), name) is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, kind)):
            noun = "whole number" if kind is int else "number"
            raise HeteroError(f"{flag} is a {type(value).__name__}, not a {noun}; give one.")
        if not -LARGEST < value < LARGEST:
            given = value if isinstance(value, float) else f"of {value.bit_length()} bits"
            raise HeteroError(f"{flag} {given} is no number between {-LARGEST} and {LARGEST}; give one that is.")


def check_model(args: Any) -> HeadProfile:
    """The model's head profile. Raises HeteroError for a model that is none of MODELS with full attention, for a
    profile of another model and for options that its budget does not allow."""
    config = configuration.model_config(args)
    architecture = (config.hf_config.architectures or ["unknown"])[0]
    text = config.hf_text_config
    if architecture not in MODELS:
        raise HeteroError(
            f"{architecture} is not served by --kv-policy {args.kv_policy}: only models with full attention are "
            f"({', '.join(MODELS)}); use --kv-policy full."
        )
    window = getattr(text, "sliding_window", None)
    if config.is_hybrid_swa or (window and getattr(text, "use_sliding_window", architecture in WINDOWED)):
        raise HeteroError(
            f"{args.model_path} attends over a sliding window of {window} tokens, which --kv-policy "
            f"{args.kv_policy} cannot serve; use --kv-policy full."
        )
    if args.attention_backend == "flashinfer":
        check_kernels(args, config)
    profile, options = options_of(args)
    resolve(profile, **options)
    eight_bits = args.kv_cache_dtype in EIGHT_BITS
    if options["policy"].index and eight_bits:
        raise HeteroError(
            f"--kv-policy {args.kv_policy} keeps its index in rows of keys, which --kv-cache-dtype "
            f"{args.kv_cache_dtype} would round; choose heterocache, or --kv-cache-dtype bfloat16."
        )
    if eight_bits and args.attention_backend != "flashinfer" and not configuration.EIGHT_BITS_ON_CPU:
        raise HeteroError(
            f"--kv-cache-dtype {args.kv_cache_dtype} is one for GPUs with SGLang {release()}, which on a CPU wants AMX "
            f"and its own attention backend for it; give --kv-cache-dtype bfloat16."
        )
    if index := options["policy"].index:  # refuses, before any request comes, rows that cannot hold it
        import torch

        index.build(torch.zeros(1, 0, index.span, config.head_dim, dtype=config.dtype), config.v_head_dim)
    return profile


def check_kernels(args: Any, config: Any) -> None:
    """Raises HeteroError for a card, head size, dtype or GQA group that the kernels do not take."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    group = config.num_attention_heads // config.get_total_num_kv_heads()
    for fine, what, wanted in (
        (major >= 8, f"compute capability {major}.{minor}", "8.0 (Ampere) or above"),
        (config.head_dim in HEAD_SIZES, f"a head size of {config.head_dim}", " or ".join(map(str, HEAD_SIZES))),
        (config.dtype in (torch.float16, torch.bfloat16), f"{config.dtype}", "float16 or bfloat16 (--dtype)"),
        (
            args.kv_cache_dtype != "fp8_e4m3" or (major, minor) >= (8, 9),
            f"--kv-cache-dtype fp8_e4m3 and compute capability {major}.{minor}",
            "8.9 (Ada) or above, or fp8_e5m2",
        ),
        (group <= MAX_GROUP, f"{group} query heads to a KV head", f"at most {MAX_GROUP}"),
    ):
        if not fine:
            raise HeteroError(
                f"--kv-policy {args.kv_policy} on a GPU does not work with {what}, only with {wanted}; use --kv-policy "
                f"full."
            )


def check_memory(args: Any, profile: HeadProfile, tokens: int | None) -> None:
    """Raises HeteroError when the host tier cannot be had or cannot hold `tokens`, the user's --max-total-tokens."""
    if args.hetero_host_size is None:
        return
    wanted, free = args.hetero_host_size * 1e9, free_host_bytes() / args.tp_size
    if not 0 < wanted <= free:
        raise HeteroError(
            f"--hetero-host-size {args.hetero_host_size:g} GB is not within (0, {free / 1e9:.1f}] GB, the free host "
            f"memory of each of {args.tp_size} ranks; choose a size within it."
        )
    least = args.hetero_sink + args.hetero_window + 1 if tokens is None else tokens
    config = configuration.model_config(args)
    row = (config.head_dim + config.v_head_dim) * item_bytes(args)
    ranks = [profile.slice(rank, args.tp_size) for rank in range(args.tp_size)]
    needed = max(rank.num_heads - rank.num_resident for rank in ranks) * row * least
    if needed > wanted:
        what = "one compressed request" if tokens is None else f"--max-total-tokens {tokens}"
        raise HeteroError(
            f"--hetero-host-size {args.hetero_host_size:g} GB is too small for {what}, whose compressed heads need "
            f"{needed / 1e9:.2g} GB; raise it{'' if tokens is None else ' or lower the other'}."
        )
