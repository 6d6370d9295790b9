"""`--kv-policy` and `--hetero-*` on SGLang's ServerArgs, and everything that is refused at start.

Every process that unpickles the arguments imports this module: it stays light. Patched source of SGLang
imports it while `server_args` is imported: that has to be the first import here."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from typing import Any, NoReturn

import sglang.srt.server_args  # noqa: F401
from sglang.srt.arg_groups.arg_utils import A, Arg

from hetero_sglang.config.choices import CHOICES
from hetero_sglang.config.defaults import DRIFT_THRESHOLD, EXIT_AGREEMENT, EXIT_MAX_BATCH, KEEP_RATIO, SINK, WINDOW
from hetero_sglang.cpu.defaults import apply_cpu_defaults
from hetero_sglang.errors import HeteroError, ending_the_process
from hetero_sglang.sglang.version import installed

logger = logging.getLogger("hetero_sglang")
arguments: Any = installed("arguments")  # of interface.Arguments
Base: Any = arguments.Base


def named(field: str) -> str:
    """The legal words of a field, for people."""
    return ", ".join(CHOICES[field])


def said(field: str, meaning: str) -> Arg:
    """What --help says of a field that takes words."""
    return Arg(f"{meaning}{one_of(field)}")


def one_of(field: str) -> str:
    """How the help of a field ends that takes words."""
    return f" One of {named(field)}." if field in CHOICES else ""


@arguments.record
class HeteroServerArgs(Base):
    """SGLang's arguments plus ours. `--kv-policy full` changes nothing else. docs/flags.md is made of what is here."""

    kv_policy: A[
        str,
        said(
            "kv_policy",
            "KV cache policy: full leaves SGLang as it is, heterocache is the two-tier cache; others are to compare.",
        ),
    ] = "full"
    hetero_profile: A[
        str,
        Arg(
            "Head profile (JSON); auto: hetero_profile.json beside the checkpoint, else a shipped one, else one made "
            "at the first start and kept."
        ),
    ] = "auto"
    hetero_lora_profile: A[
        list[str] | None,
        Arg(
            "Head profiles of adapters that are in --lora-paths, which say how many rows their requests keep of each "
            "head, NAME=FILE ...; all else, and adapters that are not named, go by the model's.",
            nargs="+",
        ),
    ] = None
    hetero_keep_ratio: A[
        float,
        Arg(
            "Device KV bytes kept per token, as a fraction of dense; must be above what the head profile takes in any "
            "case: its resident heads and its key index."
        ),
    ] = KEEP_RATIO
    hetero_host_size: A[
        float | None,
        Arg(
            "Host memory for the compressed heads, in GB per rank; limits the token slots; default: what they need, at "
            "most four fifths of what is free."
        ),
    ] = None
    hetero_window: A[int, Arg("Most recent tokens every head keeps; at least 2.")] = WINDOW
    hetero_sink: A[int, Arg("First tokens every head keeps.")] = SINK
    hetero_drift_threshold: A[
        float,
        Arg("By pivots: a satellite is refilled when less than this of its pivot's attention lies on its rows; 0: no."),
    ] = DRIFT_THRESHOLD
    hetero_monitor_interval: A[
        int | None,
        Arg(
            "By pivots, decode steps between two looks of a pivot, by default 4; of quest, fier, rocketkv and "
            "kvcluster between two choices, by default 1."
        ),
    ] = None
    hetero_dense_below: A[
        int | None,
        Arg(
            "Requests shorter than this many tokens are exact, where the hot pool can hold all their rows; default: "
            "from the heads' budget. Set lower, heads of the shortest compressed requests have too few rows to be "
            "refilled."
        ),
    ] = None
    hetero_retrieval: A[
        str,
        said(
            "hetero_retrieval",
            "By pivots, what a refill keeps: accumulate: the better of what was held and what is seen; replace, the "
            "paper's rule: what is seen alone; off: no refills.",
        ),
    ] = "accumulate"
    hetero_roles: A[
        str,
        said(
            "hetero_roles",
            "By pivots, which heads are resident: profile: as the profile says; ratio: decided at start for this keep "
            "ratio, from the profile's measurements.",
        ),
    ] = "profile"
    hetero_reassign: A[
        bool, Arg("By pivots: give satellites that no longer follow their pivot another one, or none.")
    ] = False
    hetero_ablation: A[
        str, said("hetero_ablation", "By pivots: leave out one of HeteroCache's ideas, to measure it.")
    ] = "none"
    hetero_index: A[
        str,
        said(
            "hetero_index",
            "How heads find their rows: directions: by the profile's key index, in the step that needs them; none: by "
            "pivots, as in the paper; auto: by the index where the profile has one.",
        ),
    ] = "auto"
    hetero_decode_kernel: A[
        str,
        said(
            "hetero_decode_kernel",
            "What attends in decode steps on a GPU; flashinfer does not go with a key index of runs; auto is triton.",
        ),
    ] = "auto"

    hetero_append: A[
        str,
        said(
            "hetero_append",
            "By key index, what new tokens behind a cached prefix attend to: auto: up to 512 of them, as decode steps "
            "do, to the working set that the turn before has left, if it is still there; sparse: any number, and else "
            "to one that they choose by the index; exact: the whole prefix, brought back from the host.",
        ),
    ] = "auto"
    hetero_early_exit: A[
        str | None,
        Arg(
            "Branches of the model (JSON, made by `hetero-sglang exits train`): a token that one is sure of runs no "
            "further layers in its step. With any --kv-policy, full too."
        ),
    ] = None
    hetero_exit_agreement: A[
        float,
        Arg(
            "Early exit: share of tokens that are to be full depth's first choice, as calibrated on the branches' "
            "held-out text; above 0, 1: none exits."
        ),
    ] = EXIT_AGREEMENT
    hetero_early_exit_max_batch: A[
        int, Arg("Early exit: batches of more requests run all layers, since all of a batch must be sure.")
    ] = EXIT_MAX_BATCH
    hetero_exit_kv: A[
        str,
        said(
            "hetero_exit_kv",
            "Early exit, keys and values of the layers that a token has left out: deferred: it goes through them with "
            "a later token, exactly; copied: made of its state at the exit, and never shared with other requests.",
        ),
    ] = "deferred"
    hetero_self_draft: A[
        bool,
        Arg(
            "Early exit without loss: nobody exits, but what the first branch says are drafts, which all layers "
            "verify; --speculative-num-draft-tokens says how many tokens a verification has (4)."
        ),
    ] = False

    def settle(self, theirs: Callable[[], None]) -> None:
        """Once: our defaults and refusals around `theirs`, SGLang's own. Raises HeteroError."""
        tokens = self.max_total_tokens  # the user's; the default for CPUs is none of theirs
        apply_cpu_defaults(self)
        for name, choices in CHOICES.items():  # not by argparse, whose refusal is every flag of SGLang's
            if getattr(self, name) not in choices:
                flag = name.replace("_", "-")
                raise HeteroError(f"--{flag} {getattr(self, name)!r} is not one of {named(name)}.")
        if self.hetero_early_exit:
            from hetero_sglang.sglang.early_exit import check

            check.before(self)
        if self.kv_policy == "full":
            theirs()
        else:
            self._settle_policy(theirs, tokens)
        if self.hetero_early_exit:
            check.after(self)

    def _settle_policy(self, theirs: Callable[[], None], tokens: int | None) -> None:
        from hetero_sglang.sglang import adapters, asked, drafts, own_profile, refusals, weights

        refusals.check_numbers(self)
        refusals.check_flags(self)
        self._choose_backend()
        placeholder = self.model_path.lower() in ("none", "dummy")
        if not placeholder:
            described = weights.described(self)
            weights.check_weights(self, described)
        if asked.reads_profile(self.kv_policy) and not placeholder:
            self.hetero_profile = str(own_profile.profile_of(self))
        if self.kv_cache_dtype == "auto" and not placeholder:
            self.kv_cache_dtype: str = weights.stored_rows(described, self)
        refusals.check_policy(self)
        drafts.check_trees(self)
        theirs()
        adapters.check_names(self)
        drafts.check(self)
        if placeholder:
            return
        if self.speculative_algorithm:
            drafts.build_corpus()
        refusals.check_memory(self, refusals.check_model(self), tokens)
        if warning := asked.profile_warning(self):
            logger.warning(warning)

    def _choose_backend(self) -> None:
        # The name stays one SGLang knows (it branches on it); the backend behind it is ours.
        self.disable_prefill_cuda_graph = True
        chosen = "flashinfer" if _cuda(self.device) else "torch_native"
        if self.attention_backend not in (None, chosen):
            raise HeteroError(
                f"--attention-backend {self.attention_backend} is not what --kv-policy {self.kv_policy} runs on here "
                f"({chosen}); drop it."
            )
        self.attention_backend: str | None = chosen
        if chosen == "torch_native":
            self.disable_decode_cuda_graph = True

    @classmethod
    def add_cli_args(cls, parser: argparse.ArgumentParser) -> None:
        """As SGLang's, but what is wrong with a flag of ours is said without the usage of all flags."""
        super().add_cli_args(parser)
        refuse = parser.error

        def error(message: str) -> NoReturn:
            if "--hetero-" not in message and "--kv-policy" not in message:
                refuse(message)
            with ending_the_process():
                raise HeteroError(f"{message.removeprefix('argument ')}; see --help.")

        parser.error = error  # type: ignore[method-assign]

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> HeteroServerArgs:
        """As SGLang's, but a setting of ours that cannot work ends the command with one sentence, not a trace."""
        with ending_the_process():
            return super().from_cli_args(args)


def _cuda(device: str | None) -> bool:
    import torch

    return device in (None, "cuda") and torch.version.cuda is not None and torch.cuda.is_available()
