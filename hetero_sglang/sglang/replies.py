"""`meta_info["hetero"]` of a reply: what became of the request's rows.

SGLang carries what a model wants to say of each token (`Req.customized_info`) from the scheduler to the reply. Ours is
one value for a request, said with its last tokens, so no step has more to do for it."""

from dataclasses import dataclass
from typing import Any

import torch

from hetero_sglang.cache.admission import Account
from hetero_sglang.cache.working_set import WorkingSet

KEY = "hetero"


@dataclass(frozen=True)
class Once:
    """Where SGLang expects a list that has a value for each token, and sends a slice of it: the one value, last.

    `aligned`: chunks are cut out of what was sent by their tokens' numbers (--incremental-streaming-output)."""

    value: dict[str, Any]
    aligned: bool

    def __getitem__(self, some: slice) -> list[Any]:
        return [None] * (some.stop if self.aligned else 0) + [self.value]


@dataclass(frozen=True)
class Replies:
    """How a scheduler tells; `aligned` as `Once` has it."""

    aligned: bool

    def tell(self, req: Any, ws: WorkingSet, account: Account, came: torch.Tensor, length: int) -> None:
        """The request ends with rows of `length` tokens: its reply says so."""
        said = Once(facts(ws, account, came, length), self.aligned)
        req.customized_info = {**(req.customized_info or {}), KEY: said}


def facts(ws: WorkingSet, account: Account, came: torch.Tensor, length: int) -> dict[str, int | bool]:
    """Of all ranks' heads, after `length` tokens; what `came` [2, Hc], DeviceTables', of this rank's."""
    caps = account.rows.caps
    return {
        "kept_rows": int(caps.clip(max=length).sum()),
        "all_rows": length * len(caps),
        "exact": length <= int(caps.min(initial=length)),
        "resumed": ws.tally.resumed,
        "appended_tokens": ws.tally.appended_tokens,
        "fetched_rows": int(came[0].sum()),
        "late_rows": int(came[1].sum()),
        "refills": ws.tally.refills,
    }


def settle(answer: Any) -> Any:
    """The answer of a request, or of several, with the value itself in place of SGLang's list."""
    for each in answer if isinstance(answer, list) else [answer]:
        meta = each.get("meta_info", {}) if isinstance(each, dict) else {}
        if isinstance(said := meta.get(KEY), list):
            if said and said[-1] is not None:
                meta[KEY] = said[-1]
            else:  # somebody else's of its batch has come
                del meta[KEY]
    return answer
