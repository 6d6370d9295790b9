"""SGLang's KV pool over the two tiers, and its capacity.

Replaces mem_cache/memory_pool.py's MHATokenToKVPool and model_executor/pool_configurator.py's default."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from sglang.srt.distributed import get_tp_group
from sglang.srt.mem_cache.kv_cache_dtype import TORCH_DTYPE_TO_KV_CACHE_STR
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, unwrap_write_loc
from sglang.srt.model_executor.pool_configurator import DefaultPoolConfigurator, MemoryPoolConfig

from hetero_sglang.cache.sizes import Shape
from hetero_sglang.errors import HeteroError
from hetero_sglang.sglang.runtime import runtime


def _refuse(why: str) -> Callable[..., NoReturn]:
    """A method that says what this pool does not do."""

    def method(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"heterocache {why}")

    return method


class HeteroKVPool(MHATokenToKVPool):
    """Owns no dense K/V: `get_key_buffer` raises, so a reader this project does not know fails loudly."""

    def _create_buffers(self) -> None:
        self.k_scale_buffer = self.v_scale_buffer = self.dq_k_buffer = self.dq_v_buffer = None
        shape = Shape(self.head_dim, self.v_head_dim, self.dtype.itemsize)
        cache = runtime().build_cache(self.size, self.page_size, shape, self.dtype, self.device)
        self.cache = cache
        self.k_buffer, self.v_buffer = cache.resident.k, cache.resident.v
        self._kv_buffer_descs: list[Any] = []

    def get_kv_size_bytes(self) -> tuple[int, int]:
        """Device bytes of K and V in both device stores; feeds SGLang's log and metrics."""
        cache = self.cache
        return tuple(
            sum(t.numel() * t.element_size() for t in (*store, hot))
            for store, hot in ((cache.resident.k, cache.hot.k), (cache.resident.v, cache.hot.v))
        )

    def _init_kv_copy_and_warmup(self) -> None:
        """SGLang would compile kernels that move rows of dense buffers."""

    def move_kv_cache(self, tgt_loc: torch.Tensor, src_loc: torch.Tensor) -> None:
        """After a verification of draft tokens: those at src_loc stay, at tgt_loc, both [n]; behind them both have
        slot 0, which is padding's."""
        engine = runtime().engine
        assert engine is not None and engine.verification is not None  # a pass has run
        engine.verification.accept(tgt_loc, src_loc)

    set_kv_buffer = _refuse("stores K/V in its own attention backend")
    get_key_buffer = _refuse("holds no dense K buffer: compressed heads live in the host store")
    get_value_buffer = _refuse("holds no dense V buffer: compressed heads live in the host store")
    get_kv_buffer = _refuse("holds no dense K/V buffers")
    get_cpu_copy = _refuse("does not copy slots out: retracted requests are recomputed")
    load_cpu_copy = _refuse("does not copy slots in")
    get_contiguous_buf_infos = _refuse("has no buffers for PD disaggregation")


def token_slots(loc_info: Any) -> torch.Tensor:
    """The token slots of a forward's new tokens."""
    return unwrap_write_loc(loc_info)[0]


class HeteroPoolConfigurator(DefaultPoolConfigurator):
    """Token slots from the two-tier cell. SGLang makes two of these per start: pure."""

    def __init__(self, kvc: Any) -> None:
        super().__init__(kvc)
        config = kvc.model_config
        check_stored(kvc.kv_cache_dtype)
        self._shape = Shape(config.head_dim, config.v_head_dim, kvc.kv_cache_dtype.itemsize)
        self._joint = kvc.device == "cpu"

    def calculate_pool_sizes(self, available_bytes: int, page_size: int) -> MemoryPoolConfig:
        slots = least_of_ranks(runtime().slots(self._shape, available_bytes, self._joint))
        return self.calculate_pool_sizes_from_max_tokens(slots, page_size)


def check_stored(dtype: torch.dtype) -> None:
    """Raises HeteroError where SGLang, which has loaded the model by now, keeps keys and values in other formats than
    could be told at start: what is refused and how rows are shared out hang on that."""
    if dtype.itemsize != runtime().item:
        flag = TORCH_DTYPE_TO_KV_CACHE_STR.get(dtype, str(dtype).removeprefix("torch."))
        raise HeteroError(
            f"this checkpoint makes --kv-cache-dtype auto {flag}, numbers of {8 * dtype.itemsize} bits where the start "
            f"has reckoned with {8 * runtime().item}; give --kv-cache-dtype {flag}."
        )


def least_of_ranks(count: int) -> int:
    """The least that any tensor-parallel rank has; all of them must ask."""
    group = get_tp_group()
    if group.world_size == 1:
        return count
    found = torch.tensor(count, dtype=torch.int64)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MIN, group.cpu_group)
    return int(found)


def configurator(original: Callable[[Any], Any], kvc: Any) -> Any:
    """AROUND create_memory_pool_configurator."""
    made = original(kvc)
    if type(made) is not DefaultPoolConfigurator or kvc.is_draft_worker:
        return made
    return HeteroPoolConfigurator(kvc)


def build_pool(original: Callable[..., Any], self: Any, **options: Any) -> Any:
    """AROUND KVCacheConfigurator._build_mha_kv_pool."""
    return original(self, **{**options, "mha_pool_class": HeteroKVPool})
