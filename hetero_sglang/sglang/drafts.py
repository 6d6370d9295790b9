"""Draft tokens of SGLang's speculative decoding (speculative/ngram_worker.py)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hetero_sglang.cache.lanes import upload
from hetero_sglang.config.description import Refresh
from hetero_sglang.engine.verify import MOST
from hetero_sglang.errors import HeteroError
from hetero_sglang.sglang.asked import policy_of

CORPUS = ("result", "trie", "suffix_automaton", "ngram", "ngram_corpus_ffi")  # its files, as ngram_corpus.py has them
NGRAM = "NGRAM"  # the one algorithm whose drafts are verified over working sets


def check_trees(args: Any) -> None:
    """Before SGLang settles its defaults, which names a backend that is none here. Raises HeteroError where drafts that
    branch would be verified in pages without FlashInfer's metadata."""
    in_pages, branches = (args.page_size or 1) > 1, (args.speculative_ngram_max_bfs_breadth or 1) > 1
    if (
        str(args.speculative_algorithm).upper() == NGRAM
        and args.attention_backend != "flashinfer"
        and in_pages
        and branches
    ):
        raise HeteroError(
            f"--speculative-algorithm {NGRAM} verifies no trees in pages of {args.page_size} tokens on a CPU; add "
            f"--speculative-ngram-max-bfs-breadth 1, or use --page-size 1."
        )


def check(args: Any) -> None:
    """Once SGLang has settled its defaults. Raises HeteroError where drafts cannot be verified as is asked."""
    if args.speculative_algorithm is None:
        return
    policy, count = policy_of(args), args.speculative_num_draft_tokens
    flag = f"--speculative-algorithm {NGRAM}"
    if policy.refresh in (Refresh.DRIFT, Refresh.STEP):
        recipe = " (or a head profile with a key index)" if policy.refresh is Refresh.DRIFT else ""
        raise HeteroError(
            f"{flag} does not work with --kv-policy {policy.name} as it is set: its heads look every so many tokens, "
            f"which a verification may pass over; use --kv-policy heterocache by key index{recipe}, or drop it."
        )
    if args.hetero_decode_kernel == "flashinfer":
        raise HeteroError(
            f"{flag} does not work with --hetero-decode-kernel flashinfer, which knows no trees of drafts; drop one."
        )
    most = min(args.hetero_window // 2, MOST)
    if not 2 <= count <= most:
        raise HeteroError(
            f"--speculative-num-draft-tokens {count} is not within [2, {most}], one draft at least, and no more tokens "
            f"than {MOST} and half of --hetero-window {args.hetero_window}; choose a number within it."
        )


def build_corpus() -> None:
    """Compile SGLang's corpus of n-grams, once for this machine, with a header that it lacks: GCC 12 refuses it
    without. Raises HeteroError where it cannot be compiled."""
    from sglang.kernels.jit.utils import load_jit

    files = [f"ngram_corpus/{name}.cpp" for name in CORPUS]
    try:
        load_jit("ngram_corpus", cpp_files=files, header_only=False, extra_cflags=["-include", "cstddef"])
    except (RuntimeError, OSError) as error:
        why = next((line for line in str(error).splitlines() if "error" in line.lower()), str(error)[:200])
        raise HeteroError(
            f"--speculative-algorithm {NGRAM} cannot be served: SGLang's corpus of n-grams does not compile here "
            f"({why.strip()}); install a C++ compiler and ninja, or drop the flag."
        ) from None


def trees(mask: torch.Tensor, lengths: Sequence[int], each: int) -> torch.Tensor:
    """Whether a new token attends to another: bool [B, each, each], for requests with `lengths` tokens before `each`
    new ones.

    mask [n] bool is SGLang's: of every request in turn, for each new token all tokens that it may attend to; or, on
    the CPU, the new ones alone."""
    count = len(lengths)
    if not count:
        return torch.zeros(0, each, each, dtype=torch.bool, device=mask.device)
    if mask.numel() == count * each * each:
        return mask.view(count, each, each).bool()
    before = np.array(lengths, dtype=np.int64)
    wide = before + each  # [B], tokens of a row
    first = np.concatenate(([0], np.cumsum(each * wide)[:-1])) + before
    rows = first[:, None] + np.arange(each) * wide[:, None]  # [B, each]
    where = torch.from_numpy(rows[:, :, None] + np.arange(each))
    return mask[upload(where, mask.device)].bool()
