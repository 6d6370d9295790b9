"""Arguments are what was said; what is in effect comes from SGLang's views of them (arg_groups/overrides.py)."""

from typing import Any

import msgspec

from hetero_sglang.sglang.interface import Flag

_UNTESTED = "not tested with per-head tiers"
FLAGS: tuple[Flag, ...] = (
    ("speculative_algorithm", (None,), "--speculative-algorithm: drafts are verified with SGLang 0.5.17 alone"),
    ("attn_dp_size", (1,), f"--attn-dp-size: {_UNTESTED}"),
    ("enable_kv_cache_sharding", (False,), "--enable-kv-cache-sharding: it shares out dense K/V buffers"),
    (
        "enable_unified_cache_external_linker",
        (False,),
        "--enable-unified-cache-external-linker: it transfers dense K/V buffers",
    ),
    ("enable_lean_attention", (None, False), "--enable-lean-attention: the policy brings its own kernels"),
    ("enable_nvidia_megakernel", (False,), "--enable-nvidia-megakernel: it reads dense K/V buffers"),
    ("enable_amd_monokernel", (False,), "--enable-amd-monokernel: it reads dense K/V buffers"),
    ("enable_session_radix_cache", (False,), f"--enable-session-radix-cache: {_UNTESTED}"),
    ("enable_paged_experts", (False,), "--enable-paged-experts: not tested with the host tier"),
    ("enable_layernorm_sp", (False,), f"--enable-layernorm-sp: {_UNTESTED}"),
)
EIGHT_BITS_ON_CPU = False  # kv_cache_configurator.py, `configure`


def model_config(args: Any) -> Any:
    from sglang.srt.arg_groups.overrides import model_config_of

    return model_config_of(args)


def default(kind: type, name: str) -> Any:
    return next(field.default for field in msgspec.structs.fields(kind) if field.name == name)


def names(kind: type) -> list[str]:
    return [field.name for field in msgspec.structs.fields(kind)]


def values(args: Any) -> dict[str, Any]:
    args.resolve_once()
    return dict(args.resolved_dict())


def settle(args: Any) -> None:
    args.resolve_once()
