"""What early exit cannot be had with, said at start."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

from hetero_sglang.errors import HeteroError
from hetero_sglang.exits.files import load
from hetero_sglang.sglang.drafts import NGRAM
from hetero_sglang.sglang.interface import Configuration, Flag, Targets
from hetero_sglang.sglang.refusals import check_numbers, refused
from hetero_sglang.sglang.version import TESTED, folder, installed, release

logger = logging.getLogger("hetero_sglang")
configuration: Configuration = installed("configuration")
targets: Targets = installed("targets")

MOST_BATCH = 64  # requests of a pass that may end early
DRAFTS = 4  # tokens of a verification, the one that was said among them
COMPILED = "tc_piecewise"
MODELS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")

# field of ServerArgs, values that are fine, what the flag is called and why it is refused
FLAGS: tuple[Flag, ...] = (
    ("pp_size", (1,), "--pp-size: a rank would not know whether its tokens have left"),
    ("enable_dp_attention", (False,), "--enable-dp-attention: ranks would leave at different layers"),
    ("enable_mixed_chunk", (False,), "--enable-mixed-chunk: decode rows inside a prefill batch would not wait"),
    ("enable_two_batch_overlap", (False,), "--enable-two-batch-overlap: a batch leaves as one"),
    ("enable_pdmux", (False,), "--enable-pdmux: a batch leaves as one"),
    ("enable_torch_compile", (False,), "--enable-torch-compile: a pass has no fixed end"),
    ("enable_streaming_session", (False,), "--enable-streaming-session: it goes on behind tokens that wait"),
    ("disaggregation_mode", ("null",), "--disaggregation-mode: it transfers keys and values that are not there yet"),
    ("dllm_algorithm", (None,), "--dllm-algorithm: it rewrites tokens in place"),
    ("is_embedding", (False,), "--is-embedding: an embedding model decodes nothing"),
    ("enable_deterministic_inference", (False,), "--enable-deterministic-inference: depth depends on the batch"),
    ("enable_flashinfer_allreduce_fusion", (False,), "--enable-flashinfer-allreduce-fusion: a branch needs whole sums"),
)  # fmt: skip
# unless the verification is of its own drafts
SPECULATION: Flag = ("speculative_algorithm", (None,), "--speculative-algorithm: a verification runs all layers")


def _check_self_draft(args: Any) -> None:
    """Raises HeteroError where nobody could verify what the first branch drafts; sets SGLang's flags for it."""
    if args.speculative_algorithm not in (None, NGRAM):
        raise HeteroError(
            f"--hetero-self-draft drafts by the first branch, and --speculative-algorithm "
            f"{args.speculative_algorithm} by something else; drop one of them."
        )
    if args.kv_policy == "full":
        raise HeteroError("--hetero-self-draft works with a --kv-policy but full; choose heterocache, or drop it.")
    if args.enable_lora or args.lora_paths:
        raise HeteroError("--hetero-self-draft does not know LoRA adapters; drop one of them.")
    args.speculative_algorithm = NGRAM
    args.speculative_ngram_max_bfs_breadth = 1
    if args.speculative_num_draft_tokens is None:
        args.speculative_num_draft_tokens = DRAFTS


def before(args: Any) -> None:
    """Before SGLang settles its defaults. Raises HeteroError for flags that cannot go together."""
    if not targets.LAYER_BY_LAYER:
        served = [each for each in TESTED if import_module(f"{folder(each)}.targets").LAYER_BY_LAYER]
        raise HeteroError(
            f"--hetero-early-exit is not tested with the layers of SGLang {release()}, only with those of "
            f"{', '.join(served)}; use that, or drop the flag."
        )
    for flag, value, why in refused(args, FLAGS if args.hetero_self_draft else (*FLAGS, SPECULATION)):
        raise HeteroError(f"{flag} {value} does not work with --hetero-early-exit ({why}); drop one of them.")
    if args.hetero_self_draft:
        _check_self_draft(args)
    check_numbers(args)
    agreement, batch = args.hetero_exit_agreement, args.hetero_early_exit_max_batch
    if not 0 < agreement <= 1:
        raise HeteroError(f"--hetero-exit-agreement {agreement} is not within (0, 1]; choose a share within it.")
    if not 1 <= batch <= MOST_BATCH:
        raise HeteroError(
            f"--hetero-early-exit-max-batch {batch} is not within 1 to {MOST_BATCH}; choose a number within it."
        )
    if args.hetero_exit_kv == "deferred" and args.kv_policy != "full" and args.hetero_window < 4:
        raise HeteroError(
            f"--hetero-window {args.hetero_window} leaves no room for tokens that wait for their last layers; choose 4 "
            f"or more, or --hetero-exit-kv copied."
        )


def after(args: Any) -> None:
    """Once SGLang has settled its defaults. Raises HeteroError for another model's branches."""
    config = configuration.model_config(args)
    architecture = (config.hf_config.architectures or ["unknown"])[0]
    if architecture not in MODELS:
        raise HeteroError(
            f"--hetero-early-exit knows no layers of {architecture}, only those of {', '.join(MODELS)}; drop it."
        )
    load(args.hetero_early_exit, args.model_path)
    if args.cuda_graph_config.prefill.backend == COMPILED:
        raise HeteroError(
            f"--cuda-graph-backend-prefill {COMPILED} does not work with --hetero-early-exit (it puts a compiled pass "
            f"in the place of the one that ends early); choose breakable or disabled."
        )
    if args.device == "cuda" and args.enable_lora and not args.disable_decode_cuda_graph:
        logger.warning(
            "early exit: with --enable-lora decode steps of up to %d requests are no CUDA graphs and take longer",
            args.hetero_early_exit_max_batch,
        )
