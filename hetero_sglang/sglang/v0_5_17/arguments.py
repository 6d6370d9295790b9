"""ServerArgs is a dataclass that settles everything when it is made (server_args.py)."""

import dataclasses

from sglang.srt.server_args import ServerArgs


class Base(ServerArgs):
    """SGLang's arguments."""

    def __post_init__(self) -> None:
        self.settle(super().__post_init__)


def record(kind: type) -> type:
    """As a dataclass, whose annotated fields are arguments."""
    return dataclasses.dataclass(kind)
