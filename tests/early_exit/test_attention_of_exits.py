"""What passes that end early ask of the backends that SGLang has built."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hetero_sglang.sglang import backend
from hetero_sglang.sglang.backend import HeteroAttnBackend
from hetero_sglang.sglang.early_exit.attention import Dense, Tiered

LAYER = SimpleNamespace(tp_k_head_num=2, qk_head_dim=4, tp_v_head_num=2, v_head_dim=3, k_scale=0.5, v_scale=2.0)


class Pool:
    """As SGLang's, of 8 bits."""

    def set_kv_buffer(self, layer: Any, where: Any, k: torch.Tensor, v: torch.Tensor, *units: Any) -> None:
        self.written = k.shape, v.shape, units


@pytest.mark.parametrize(
    ("more", "units"), [({}, (0.5, 2.0)), ({"_kv_write_scales": lambda layer: (None, None)}, (None, None))]
)
def test_copied_rows_are_written_as_the_backend_writes_its_own(more: dict[str, Any], units: Any) -> None:
    """Divided by what the checkpoint says, unless the pool does that."""
    own: Any = SimpleNamespace(token_to_kv_pool=Pool(), **more)
    batch = SimpleNamespace(out_cache_loc=torch.tensor([5]))
    Dense(own).store(torch.zeros(1, 16), torch.ones(1, 8), torch.ones(1, 6), LAYER, batch)
    assert own.token_to_kv_pool.written == ((1, 2, 4), (1, 2, 3), units)


def test_kernels_are_prepared_for_every_width_that_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashInfer's knows those it was made for; a plan of graphs may make none."""
    prepared, planned = set[int](), []

    def plan(width: int) -> None:
        assert width in prepared
        planned.append(width)

    monkeypatch.setattr(backend, "runtime", lambda: SimpleNamespace(batch=[]))
    step = SimpleNamespace(kernel=SimpleNamespace(prepare=prepared.add), plan=plan)
    late = SimpleNamespace(fill=lambda *what: None, plan=lambda late, width: [])
    tiers: Any = HeteroAttnBackend.__new__(HeteroAttnBackend)
    tiers.engine = SimpleNamespace(graph_step=step, graph_late=late)
    tiers.cache = SimpleNamespace(settings=SimpleNamespace(rule=SimpleNamespace(window=16)))
    tiers.req_to_token_pool, tiers.token_to_kv_pool, tiers.step = SimpleNamespace(req_to_token=None), None, step
    tiers.fill_turns([], 3)
    tiers.plan_turns(0, 3, True)
    mode = SimpleNamespace(is_target_verify=lambda: False, is_decode_or_idle=lambda: True)
    Tiered(tiers).whole(SimpleNamespace(batch_size=5, forward_mode=mode))
    assert planned == [3, 5] and tiers.parts is None
