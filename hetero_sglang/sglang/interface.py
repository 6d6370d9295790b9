"""What SGLang's versions do in different ways: each module of a version's folder is of one of these types.

docs/port.md says how a version is added."""

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Protocol

import torch

Seam = tuple[str, Callable[..., Any], Any]  # target, hook, and its kind in SGLang's HookType
Flag = tuple[str, tuple[Any, ...], str]  # field of ServerArgs, values that are fine, the flag and why it is refused


class Arguments(Protocol):
    """`arguments`: how SGLang's arguments become a class of ours. It alone may import SGLang's class."""

    @property
    def Base(self) -> type:
        """What HeteroServerArgs is derived from; calls its `settle` once, when SGLang settles defaults."""

    def record(self, kind: type) -> type:
        """The class with its annotated fields as arguments."""


class Configuration(Protocol):
    """`configuration`: how arguments are read."""

    FLAGS: tuple[Flag, ...]  # that this version alone has, or that are refused for other reasons
    EIGHT_BITS_ON_CPU: bool  # keys and values may be kept so there, without AMX and an attention backend for it

    def model_config(self, args: Any) -> Any:
        """SGLang's ModelConfig of the model that the arguments name."""

    def default(self, kind: type, name: str) -> Any:
        """A field's default in a class of arguments."""

    def names(self, kind: type) -> list[str]:
        """All fields of a class of arguments, SGLang's first."""

    def values(self, args: Any) -> dict[str, Any]:
        """All fields by name, as they are in effect."""

    def settle(self, args: Any) -> None:
        """Settle defaults and refuse what cannot work, where the constructor has not done so."""


class Requests(Protocol):
    """`requests`: what a Req knows of itself."""

    LEAKS_ADAPTERS: bool  # those that are sent are not those that are counted as an adapter's (adapter_use.py)

    def begun(self, req: Any) -> bool:
        """Whether it has a request slot."""

    def slot(self, req: Any) -> int:
        """Its request slot, its row of req_to_token, once it has begun."""

    def prefix(self, req: Any) -> int:
        """Tokens that it has found in the radix tree, or that its earlier chunks have made."""

    def end(self, req: Any) -> int | None:
        """Its tokens up to the end of the chunk that runs or ran last; None: none has."""

    def committed(self, req: Any) -> int:
        """Tokens whose rows are written, or will be by steps that run."""

    def kept(self, req: Any) -> int:
        """Tokens that the radix tree keeps of it when it ends."""

    def salt(self, req: Any) -> Hashable:
        """What else than tokens the radix tree tells its prefix apart by."""


class Slots(Protocol):
    """`slots`: token slots, free and in the radix tree."""

    def frees_now(self, allocator: Any) -> bool:
        """Whether `free` gives slots back at once; else a group of frees is open, which comes as one later."""

    def free_pages(self, allocator: Any) -> torch.Tensor:
        """Pages [n] that are free."""

    def matched(self, tree: Any, req: Any, most: int) -> int:
        """Of the request's first `most` tokens, how many the radix tree has."""

    def cached(self, tree: Any) -> int:
        """Token slots that the radix tree holds."""

    def free_behind(self, req: Any, start: int, end: int, tree: Any) -> None:
        """Give back slots of tokens [start, end) of a request that ends, of which the radix tree keeps none; start at a
        page's first."""


class Scheduling(Protocol):
    """`scheduling`: how a scheduler's process begins, and its passes over the queue."""

    REQUEUES: bool  # a pass that lets nobody in puts the preempted back into the queue by itself

    def rank(self, *args: Any, **kwargs: Any) -> int:
        """Tensor-parallel rank, of what configure_scheduler_process is called with behind the arguments."""

    def preempt(self, adder: Any, req: Any, scheduler: Any) -> bool:
        """SGLang's PrefillAdder.preempt_to_schedule."""


class Memory(Protocol):
    """`memory`: by how much GPU memory SGLang chooses."""

    BY_MEMORY: tuple[tuple[int, int, int], ...]  # below MiB: tokens of a prefill's chunk, largest CUDA graph
    LARGEST: tuple[int, int]  # for all larger
    MANY_RANKS: dict[int, int]  # the largest graph from four ranks on, by that of fewer


class Targets(Protocol):
    """`targets`: where it is hooked beside what all versions have in common (hooks.py). Imports nothing of SGLang."""

    RELIED_ON: tuple[str, ...]  # what we override or call where SGLang hides it, for tests/adapter/contract.py
    LAYER_BY_LAYER: bool  # early exit runs its models' layers
    KEPT: str  # the method of Req that `requests.kept` calls

    def seams(self) -> list[Seam]:
        """Hooks of every process."""


if TYPE_CHECKING:  # every version has them all
    from hetero_sglang.sglang.v0_5_17 import arguments as old_arguments
    from hetero_sglang.sglang.v0_5_17 import configuration as old_configuration
    from hetero_sglang.sglang.v0_5_17 import memory as old_memory
    from hetero_sglang.sglang.v0_5_17 import requests as old_requests
    from hetero_sglang.sglang.v0_5_17 import scheduling as old_scheduling
    from hetero_sglang.sglang.v0_5_17 import slots as old_slots
    from hetero_sglang.sglang.v0_5_17 import targets as old_targets
    from hetero_sglang.sglang.v0_5_23 import arguments as new_arguments
    from hetero_sglang.sglang.v0_5_23 import configuration as new_configuration
    from hetero_sglang.sglang.v0_5_23 import memory as new_memory
    from hetero_sglang.sglang.v0_5_23 import requests as new_requests
    from hetero_sglang.sglang.v0_5_23 import scheduling as new_scheduling
    from hetero_sglang.sglang.v0_5_23 import slots as new_slots
    from hetero_sglang.sglang.v0_5_23 import targets as new_targets

    _arguments: tuple[Arguments, ...] = old_arguments, new_arguments
    _configuration: tuple[Configuration, ...] = old_configuration, new_configuration
    _memory: tuple[Memory, ...] = old_memory, new_memory
    _requests: tuple[Requests, ...] = old_requests, new_requests
    _scheduling: tuple[Scheduling, ...] = old_scheduling, new_scheduling
    _slots: tuple[Slots, ...] = old_slots, new_slots
    _targets: tuple[Targets, ...] = old_targets, new_targets
