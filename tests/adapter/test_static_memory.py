"""The share of a GPU that weights and KV get is the one SGLang chooses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from sglang.srt.server_args import ServerArgs

from hetero_sglang.sglang.static_memory import static_fraction
from hetero_sglang.sglang.version import release

RECALL = Path(__file__).parents[2] / "assets" / "recall-8m"


class Args:
    """As much of 0.5.17's arguments as the choice reads: ours have no graphs of prefills."""

    device = "cuda"
    disaggregation_mode = "null"
    chunked_prefill_size = max_running_requests = max_total_tokens = mem_fraction_static = None
    pp_size, model_path, enable_symm_mem = 1, "model", False
    use_mla_backend = post_capture_kv_sizing_planned = staticmethod(lambda: False)
    reserve_for_deepep_a2a_mb = staticmethod(lambda: 0.0)
    get_model_config = staticmethod(lambda: SimpleNamespace(is_multimodal=False))
    _generate_decode_cuda_graph_batch_sizes = _generate_prefill_cuda_graph_batch_sizes = staticmethod(lambda most: [1])

    def __init__(self, ranks: int) -> None:
        self.tp_size = ranks
        decode = SimpleNamespace(max_bs=None, bs=None)
        self.cuda_graph_config = SimpleNamespace(decode=decode, prefill=SimpleNamespace(max_bs=None, bs=None))

    def reserve_for_graph_mb(self) -> float:
        return 2 * self.cuda_graph_config.decode.max_bs


def chosen_by_0_5_17(mib: float, ranks: int, monkeypatch: pytest.MonkeyPatch) -> float:
    args = Args(ranks)
    ServerArgs._handle_gpu_memory_settings(args, mib)
    return args.mem_fraction_static


def chosen_by_0_5_23(mib: float, ranks: int, monkeypatch: pytest.MonkeyPatch) -> float:
    from sglang.srt.arg_groups import cuda_graph_hook, memory_hook
    from sglang.srt.arg_groups.overrides import resolving_view

    args = ServerArgs(model_path=str(RECALL), device="cuda", tp_size=ranks, disable_prefill_cuda_graph=True)
    args._resolved_overrides = []
    cuda_graph_hook.handle_cuda_graph_config(args)
    monkeypatch.setattr(memory_hook, "get_device_memory_capacity", lambda device: mib)
    memory_hook.handle_gpu_memory_settings(args)
    return resolving_view(args).mem_fraction_static


CHOSEN = {"0.5.17": chosen_by_0_5_17, "0.5.23": chosen_by_0_5_23}


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("gib", [12, 16, 22.5, 24, 32, 40, 48, 59, 61, 80, 94, 141, 180, 288])
def test_it_is_sglangs_own_choice(gib: float, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert static_fraction(gib * 1024, ranks) == CHOSEN[release()](gib * 1024, ranks, monkeypatch)
