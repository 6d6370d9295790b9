"""ServerArgs is a msgspec.Struct that settles defaults when somebody first asks (server_args.py, `resolve_once`)."""

import argparse
import contextlib
from typing import Self

from sglang.srt.server_args import ServerArgs

from hetero_sglang.errors import ending_the_process


class Base(ServerArgs):
    """SGLang's arguments; its fields are what was said, also after defaults have been settled."""

    def resolve_once(self) -> None:
        """As SGLang's. Raises HeteroError; of a command line, ends it with one sentence instead of a trace."""
        if getattr(self, "_resolution_finished", False):
            return
        of_command_line = getattr(self, "_of_command_line", False)
        with ending_the_process() if of_command_line else contextlib.nullcontext():
            self.settle(super().resolve_once)

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> Self:
        """As SGLang's, marked as such."""
        made: Self = super().from_cli_args(args)
        made._of_command_line = True
        return made


def record(kind: type) -> type:
    """As it is: a Struct's annotated fields are arguments."""
    return kind
