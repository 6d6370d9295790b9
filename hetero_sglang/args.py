"""`--kv-policy` and `--hetero-*` on SGLang's ServerArgs, and everything that is refused at start.

Every process that unpickles the arguments imports this module: it stays light.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from sglang.srt.arg_groups.arg_utils import NS, A, Arg
from sglang.srt.server_args import ServerArgs

from hetero_sglang.choices import ABLATIONS, CHOICES, DECODE_KERNELS, FETCH, POLICIES, RETRIEVAL, ROLES
from hetero_sglang.cpu.defaults import apply_cpu_defaults
from hetero_sglang.errors import HeteroError


@dataclasses.dataclass
class HeteroServerArgs(ServerArgs):
    """SGLang's arguments plus ours. `--kv-policy full` changes nothing else."""

    kv_policy: A[str, Arg(help="KV cache policy.", choices=POLICIES), NS("memory")] = "full"
    hetero_profile: A[
        str | None,
        Arg(help="Head profile (JSON); default: hetero_profile.json beside the checkpoint, else a shipped one."),
        NS("memory"),
    ] = None
    hetero_keep_ratio: A[float, Arg(help="Device KV bytes kept per token, as a fraction of dense."), NS("memory")] = 0.5
    hetero_host_size: A[
        float | None,
        Arg(help="Host memory for the compressed heads, in GB per rank; default: what the token slots need."),
        NS("memory"),
    ] = None
    hetero_window: A[int, Arg(help="Most recent tokens every head keeps."), NS("memory")] = 64
    hetero_sink: A[int, Arg(help="First tokens every head keeps."), NS("memory")] = 4
    hetero_drift_threshold: A[
        float,
        Arg(help="A satellite is refilled when less of its pivot's attention than this lies on its rows; 0: never."),
        NS("memory"),
    ] = 0.9
    hetero_monitor_interval: A[
        int | None,
        Arg(help="Decode steps between two looks of a pivot, or two choices by an index; default: 4, or every step."),
        NS("memory"),
    ] = None
    hetero_dense_below: A[
        int | None,
        Arg(help="Requests shorter than this many tokens stay exact; default: from the smallest head's budget."),
        NS("memory"),
    ] = None
    hetero_retrieval: A[
        str,
        Arg(
            help="What a fetch does to a working set: add to what was important, or replace it; off: none are made.",
            choices=RETRIEVAL,
        ),
        NS("memory"),
    ] = "accumulate"
    hetero_roles: A[
        str,
        Arg(
            help="Which heads are resident: as the profile says, or decided from its measurements for this keep ratio.",
            choices=ROLES,
        ),
        NS("memory"),
    ] = "profile"
    hetero_fetch: A[
        str,
        Arg(
            help="Whether rows come while decoding goes on, or a step waits for those that its pivots ask for.",
            choices=FETCH,
        ),
        NS("memory"),
    ] = "ahead"
    hetero_reassign: A[
        bool, Arg(help="Give satellites that no longer follow their pivot another one, or none."), NS("memory")
    ] = False
    hetero_ablation: A[
        str, Arg(help="Leave out one of HeteroCache's ideas, to measure it.", choices=ABLATIONS), NS("memory")
    ] = "none"
    hetero_decode_kernel: A[
        str,
        Arg(help="What a decode step attends with on a GPU; auto: the faster of the two.", choices=DECODE_KERNELS),
        NS("memory"),
    ] = "auto"

    def __post_init__(self) -> None:
        apply_cpu_defaults(self)
        for name, choices in CHOICES.items():  # sgl.Engine does not go through argparse
            if getattr(self, name) not in choices:
                flag = name.replace("_", "-")
                raise HeteroError(f"--{flag} {getattr(self, name)!r} is not one of {', '.join(choices)}.")
        if self.kv_policy == "full":
            super().__post_init__()
            return
        from hetero_sglang.sglang import refusals

        refusals.check_flags(self)
        self._choose_backend()
        refusals.check_policy(self)
        super().__post_init__()
        if self.model_path.lower() in ("none", "dummy"):
            return
        refusals.check_model(self)
        refusals.check_memory(self)

    def _choose_backend(self) -> None:
        # The name stays one SGLang knows (it branches on it); the backend behind it is ours.
        self.attention_backend: str | None
        self.disable_prefill_cuda_graph = True
        if self.attention_backend == "torch_native" or not _cuda(self.device):
            self.attention_backend = "torch_native"
            self.disable_decode_cuda_graph = True
        else:
            self.attention_backend = "flashinfer"

    def hetero_policy(self) -> Any:
        """The policy that the flags name."""
        from hetero_sglang.policy.choice import make_policy

        return make_policy(self.kv_policy, self.hetero_ablation)

    def hetero_options(self) -> tuple[Any, dict[str, Any]]:
        """The head profile and the keyword arguments of `settings.resolve`."""
        from hetero_sglang.policy.base import Refresh
        from hetero_sglang.policy.choice import profile_for

        policy, interval = self.hetero_policy(), self.hetero_monitor_interval
        if interval is None:
            interval = 1 if policy.refresh is Refresh.STEP or self.hetero_fetch == "wait" else 4
        return profile_for(policy, self), {
            "policy": policy,
            "keep_ratio": self.hetero_keep_ratio,
            "window": self.hetero_window,
            "sink": self.hetero_sink,
            "dense_below": self.hetero_dense_below,
            "drift_threshold": self.hetero_drift_threshold,
            "monitor_interval": interval,
            "retrieval": self.hetero_retrieval,
            "waits": self.hetero_fetch == "wait",
            "reassign": self.hetero_reassign,
            "decode_kernel": self.hetero_decode_kernel,
        }

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> HeteroServerArgs:
        """As SGLang's, but a setting of ours that cannot work ends the command with one sentence, not a trace."""
        try:
            return super().from_cli_args(args)
        except HeteroError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(2) from None


def _cuda(device: str | None) -> bool:
    import torch

    return device in (None, "cuda") and torch.version.cuda is not None and torch.cuda.is_available()
