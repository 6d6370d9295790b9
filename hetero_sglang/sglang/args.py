"""`--kv-policy` and `--hetero-*` on SGLang's ServerArgs, and everything that is refused at start.

Every process that unpickles the arguments imports this module: it stays light."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from typing import NoReturn

from sglang.srt.arg_groups.arg_utils import A, Arg
from sglang.srt.server_args import ServerArgs

from hetero_sglang.config.choices import CHOICES
from hetero_sglang.cpu.defaults import apply_cpu_defaults
from hetero_sglang.errors import HeteroError, ending_the_process

logger = logging.getLogger("hetero_sglang")


def named(field: str) -> str:
    """The legal words of a field, for people."""
    return ", ".join(CHOICES[field])


@dataclasses.dataclass
class HeteroServerArgs(ServerArgs):
    """SGLang's arguments plus ours. `--kv-policy full` changes nothing else."""

    kv_policy: A[str, Arg(f"KV cache policy: {named('kv_policy')}.")] = "full"
    hetero_profile: A[
        str,
        Arg(
            "Head profile (JSON); auto: hetero_profile.json beside the checkpoint, else a shipped one, else one made "
            "at the first start and kept."
        ),
    ] = "auto"
    hetero_keep_ratio: A[float, Arg("Device KV bytes kept per token, as a fraction of dense.")] = 0.5
    hetero_host_size: A[
        float | None, Arg("Host memory for the compressed heads, in GB per rank; default: what the token slots need.")
    ] = None
    hetero_window: A[int, Arg("Most recent tokens every head keeps.")] = 64
    hetero_sink: A[int, Arg("First tokens every head keeps.")] = 4
    hetero_drift_threshold: A[
        float, Arg("A satellite is refilled when less of its pivot's attention than this lies on its rows; 0: never.")
    ] = 0.9
    hetero_monitor_interval: A[
        int | None,
        Arg("Decode steps between two looks of a pivot, or two choices by an index; default: 4, or every step."),
    ] = None
    hetero_dense_below: A[
        int | None, Arg("Requests shorter than this many tokens stay exact; default: from the smallest head's budget.")
    ] = None
    hetero_retrieval: A[
        str,
        Arg(
            "What a refill keeps: the better of what was held and is seen, or what is seen; off: no refills. "
            f"One of {named('hetero_retrieval')}."
        ),
    ] = "accumulate"
    hetero_roles: A[
        str,
        Arg(
            "Which heads are resident: as the profile says, or decided from its measurements for this keep ratio. "
            f"One of {named('hetero_roles')}."
        ),
    ] = "profile"
    hetero_reassign: A[bool, Arg("Give satellites that no longer follow their pivot another one, or none.")] = False
    hetero_ablation: A[
        str, Arg(f"Leave out one of HeteroCache's ideas, to measure it: {named('hetero_ablation')}.")
    ] = "none"
    hetero_index: A[
        str,
        Arg(
            "How heads find their rows: by the profile's key index, in the step that needs them, or not at all, "
            f"as in the paper. One of {named('hetero_index')}; auto: by the index where there is one."
        ),
    ] = "auto"
    hetero_decode_kernel: A[
        str, Arg(f"What a decode step attends with on a GPU: {named('hetero_decode_kernel')}; auto is the faster one.")
    ] = "auto"

    hetero_append: A[
        str,
        Arg(
            "What new tokens behind a cached prefix attend to: the working set that the turn before has left (auto: up "
            "to 512 of them; sparse: any number, or else one chosen by the key index), or the whole prefix. One of "
            f"{named('hetero_append')}."
        ),
    ] = "auto"

    def __post_init__(self) -> None:
        tokens = self.max_total_tokens  # the user's; the default for CPUs is none of theirs
        apply_cpu_defaults(self)
        for name, choices in CHOICES.items():  # not by argparse, whose refusal is every flag of SGLang's
            if getattr(self, name) not in choices:
                flag = name.replace("_", "-")
                raise HeteroError(f"--{flag} {getattr(self, name)!r} is not one of {named(name)}.")
        if self.kv_policy == "full":
            super().__post_init__()
            return
        from hetero_sglang.sglang import asked, own_profile, refusals

        refusals.check_numbers(self)
        refusals.check_flags(self)
        self._choose_backend()
        placeholder = self.model_path.lower() in ("none", "dummy")
        if asked.reads_profile(self.kv_policy) and not placeholder:
            self.hetero_profile = str(own_profile.profile_of(self))
        refusals.check_policy(self)
        super().__post_init__()
        if placeholder:
            return
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
