"""A branch: what makes logits of the hidden states behind some layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from hetero_sglang.errors import HeteroError
from hetero_sglang.exits.confidence import MEASURES

Head = Callable[[torch.Tensor], torch.Tensor]

KINDS = ("adapter", "head", "frequent")
_SHAPES = {"norm": 1, "down": 2, "up": 2, "head": 2, "tokens": 1, "rest": 1}


@dataclass(frozen=True, eq=False)
class Branch:
    """Asked when `layer` layers have run. A norm, and one of three kinds: `adapter` (`down` and `up`) in front of the
    model's own head; `head`, one of its own; `frequent`, one of its own that knows the words `tokens`: its last row
    says how likely any other word is, and `rest` how those share that.

    Raises HeteroError for tensors that do not fit each other, and for numbers that are not finite."""

    layer: int
    vocabulary: int  # V, the model's
    eps: float  # of the norm
    norm: torch.Tensor  # [H]
    down: torch.Tensor | None = None  # [r, H]
    up: torch.Tensor | None = None  # [H, r]
    head: torch.Tensor | None = None  # [V, H], or [V' + 1, H] of a frequent one
    tokens: torch.Tensor | None = None  # [V'] int64, ascending
    rest: torch.Tensor | None = None  # [V] float32: log share of each word among those not known; of known ones unread

    def __post_init__(self) -> None:
        if not 0.0 < self.eps < 1.0:
            raise HeteroError(f"the norm's eps is {self.eps:g}; it must lie between 0 and 1.")
        for name, tensor in self.tensors().items():
            self._check_tensor(name, tensor)
        own = self.head is not None
        if (self.down is None) != (self.up is None) or (self.down is None) != own:
            raise HeteroError("it must have either `down` and `up` or a `head`; train the branches again.")
        if (self.tokens is None) != (self.rest is None) or (self.tokens is not None and not own):
            raise HeteroError("it must have both `tokens` and `rest`, and a `head`, or none of the two; train again.")
        for name, shape in shapes(self.kind, self.hidden_size, self.vocabulary, self.size).items():
            if (found := tuple(self.tensors()[name].shape)) != shape:
                raise HeteroError(f"`{name}` has shape {list(found)}; it must be {list(shape)}.")
        if self.tokens is not None:
            self._check_tokens(self.tokens)

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return "adapter" if self.head is None else "head" if self.tokens is None else "frequent"

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.norm.shape[0]

    @property
    def size(self) -> int:
        """An adapter's rank, else how many words the branch knows."""
        found = self.down if self.down is not None else self.head if self.tokens is None else self.tokens
        assert found is not None
        return found.shape[0]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Those that there are, by field."""
        return {name: tensor for name in _SHAPES if (tensor := getattr(self, name)) is not None}

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Branch:
        """The same on a device; adapter and head in `dtype`, all else as it is or in float32."""
        kinds = {"norm": torch.float32, "tokens": torch.int64, "rest": torch.float32}
        moved = {name: tensor.to(device, kinds.get(name, dtype)) for name, tensor in self.tensors().items()}
        return replace(self, **moved)

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """What goes into the head: states behind the layer [n, H] -> [n, H] of the same dtype. The RMS norm is taken in
        float32."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.norm
        if self.down is not None and self.up is not None:
            narrow = F.linear(wide.to(self.down.dtype), self.down)  # [n, r]
            wide = wide + F.linear(narrow, self.up)
        return wide.to(x.dtype)

    def scores(self, x: torch.Tensor, model_head: Head) -> torch.Tensor:
        """Logits of the words that the branch knows, and in the last column that of any other: [n, H] -> [n, V], or
        [n, V' + 1], float32. `model_head` makes [n, V] of [n, H]."""
        hidden = self.hidden(x)
        if self.head is None:
            return model_head(hidden).float()
        return F.linear(hidden.to(self.head.dtype), self.head).float()

    def logits(self, x: torch.Tensor, model_head: Head) -> torch.Tensor:
        """Of all words: [n, H] -> [n, V] float32."""
        scores = self.scores(x, model_head)
        if self.tokens is None or self.rest is None:
            return scores
        return (scores[:, -1:] + self.rest).index_copy_(1, self.tokens, scores[:, :-1])

    def ask(self, x: torch.Tensor, model_head: Head, confidence: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits as of `logits`, and how sure the branch is of its first choice [n] float32 (`confidence`: one of
        MEASURES).

        May stand in a CUDA graph: NaN is not refused but never exits."""
        logits = self.logits(x, model_head)
        return logits, MEASURES[confidence](logits)

    def _check_tensor(self, name: str, tensor: torch.Tensor) -> None:
        if name == "tokens":
            if tensor.dtype != torch.int64 or tensor.ndim != 1:
                raise HeteroError(f"`tokens` is {tensor.dtype} of {tensor.ndim} dimensions; it must be int64 of 1.")
        elif not tensor.is_floating_point() or tensor.ndim != _SHAPES[name]:
            raise HeteroError(
                f"`{name}` is {tensor.dtype} of {tensor.ndim} dimensions; it must be floating point of {_SHAPES[name]}."
            )
        elif not torch.isfinite(tensor).all():
            raise HeteroError(f"`{name}` holds a number that is not finite; train the branches again.")

    def _check_tokens(self, tokens: torch.Tensor) -> None:
        if int(tokens[0]) < 0 or int(tokens[-1]) >= self.vocabulary or not (tokens.diff() > 0).all():
            raise HeteroError(f"`tokens` must be ascending numbers of words from 0 to {self.vocabulary - 1}.")


def shapes(kind: str, hidden: int, vocabulary: int, size: int) -> dict[str, tuple[int, ...]]:
    """What tensors a branch of one of KINDS must have. `size`: its rank (adapter) or words. Raises HeteroError for
    another kind, and for a size out of range."""
    if kind not in KINDS:
        raise HeteroError(f"its kind is {kind[:40]!r}; it must be one of {', '.join(KINDS)}.")
    noun = "rank" if kind == "adapter" else "number of words"
    # Two words at least, so that there is a margin.
    least, most = {"adapter": (1, hidden), "head": (vocabulary, vocabulary), "frequent": (2, vocabulary - 1)}[kind]
    if not least <= size <= most:
        raise HeteroError(f"its {noun} is {size}; it must lie between {least} and {most}.")
    if kind == "adapter":
        return {"norm": (hidden,), "down": (size, hidden), "up": (hidden, size)}
    if kind == "head":
        return {"norm": (hidden,), "head": (size, hidden)}
    return {"norm": (hidden,), "head": (size + 1, hidden), "tokens": (size,), "rest": (vocabulary,)}
