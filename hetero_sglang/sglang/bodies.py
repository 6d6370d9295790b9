"""The main process's gate: a request that would end a process gets an answer that names its field instead.

Every way in, the HTTP routes' and `sgl.Engine`'s, ends in TokenizerManager.generate_request; SGLang answers a
ValueError from there with 400."""

import logging
import re
from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Any

from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX

from hetero_sglang.errors import HeteroError
from hetero_sglang.sglang.adapter_use import counting
from hetero_sglang.sglang.interface import Requests
from hetero_sglang.sglang.replies import settle
from hetero_sglang.sglang.request_check import check, place, shown
from hetero_sglang.sglang.version import installed

logger = logging.getLogger("hetero_sglang")
requests: Requests = installed("requests")

HEALTH_ROUTES = ("/health", "/health_generate")
MOST_SAMPLES = 4096  # prompts times n of one request: each is an object here before anything is checked

# fields that are one value, or a list with one for every prompt
LISTED = (
    "sampling_params", "return_logprob", "logprob_start_len", "top_logprobs_num", "return_sampling_mask", "video_data",
    "audio_data", "lora_path", "lora_id", "custom_logit_processor", "bootstrap_host", "bootstrap_port",
    "bootstrap_room", "bootstrap_pair_key", "decode_tp_size", "multi_item_delimiter_indices",
)  # fmt: skip

# what SGLang's own handling of a request raises when a field is of a kind it did not expect
UNREADABLE = (TypeError, AttributeError, LookupError, ArithmeticError, RecursionError, AssertionError, re.error)


def watch(result: None, manager: Any, server_args: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER TokenizerManager.__init__: this manager's requests are checked before and after they are tokenized."""
    if getattr(server_args, "kv_policy", "full") == "full":
        return
    generate, create = manager.generate_request, manager._create_tokenized_object
    labels = set(manager.metrics_collector.labels) if manager.enable_metrics else None
    counted = counting(manager) if manager.enable_lora and requests.LEAKS_ADAPTERS else nullcontext

    async def generate_request(obj: Any, request: Any = None) -> AsyncIterator[Any]:
        check_name(obj.rid, request)
        check_shape(obj, labels)
        begun = False
        try:
            with counted(obj):
                async for answer in generate(obj, request):
                    begun = True
                    yield settle(answer)
        except UNREADABLE as error:
            if begun:
                raise
            logger.warning("a request could not be read: %s", place(error))
            raise HeteroError(f"The request cannot be read ({type(error).__name__}); correct it.") from None

    def create_tokenized_object(*args: Any, **kwargs: Any) -> Any:
        made = create(*args, **kwargs)
        if hasattr(made, "top_logprobs_num"):  # not an embedding request
            check(made, manager.model_config)
        return made

    manager.generate_request = generate_request
    manager._create_tokenized_object = create_tokenized_object


def check_name(rid: Any, request: Any) -> None:
    """Raises HeteroError for a request that is named as SGLang's health checks are: the scheduler answers none of these
    while others run (`process_input_requests`), and whoever asked would wait without end."""
    if request is not None and request.url.path in HEALTH_ROUTES:
        return
    for each in rid if isinstance(rid, list) else [rid]:
        if isinstance(each, str) and each.startswith(HEALTH_CHECK_RID_PREFIX):
            own = f"{HEALTH_CHECK_RID_PREFIX} is for the server's own"
            raise HeteroError(f"rid {shown(each)} cannot be served: {own}; give it another name.")


def check_shape(obj: Any, labels: set[str] | None) -> None:
    """Raises HeteroError for what must be right before SGLang multiplies a request into its samples.

    `labels`: names that the metrics have; None: there are no metrics."""
    batch = prompts(obj)
    if getattr(obj, "lora_id", None) is not None:  # the server's own, by which it counts who uses an adapter
        raise HeteroError(f"lora_id {shown(obj.lora_id)} cannot be served: name the adapter in lora_path.")
    for name in LISTED:
        value = getattr(obj, name, None)
        if batch is not None and isinstance(value, list) and len(value) < batch:
            raise HeteroError(f"{name} has {len(value)} entries for {batch} prompts; give one for each.")
    given = obj.sampling_params
    every = given if isinstance(given, list) else [given if given is not None else {}]
    if not every or not all(isinstance(params, dict) for params in every) or (batch is None and given == every):
        wanted = "one object" if batch is None else "one object, or one for each prompt"
        raise HeteroError(f"sampling_params {shown(given)} cannot be served: give {wanted}.")
    for params in every:
        n = params.get("n", 1)
        if type(n) is not int or n * (batch or 1) > MOST_SAMPLES or (batch is not None and n < 1):
            most = MOST_SAMPLES // (batch or 1)
            raise HeteroError(
                f"n {shown(n)} cannot be served: give a number from 1 to {most} for {batch or 1} prompts."
            )
    unknown = set(getattr(obj, "custom_labels", None) or ()) - (labels or set())
    if unknown and labels is not None:
        raise HeteroError(
            f"custom_labels has {shown(sorted(unknown))}, which the metrics have not: leave them out, or start the "
            f"server with --tokenizer-metrics-allowed-custom-labels."
        )


def prompts(obj: Any) -> int | None:
    """How many prompts a request has; None: it is one, not a list of them."""
    if obj.text is not None:
        return len(obj.text) if isinstance(obj.text, list) else None
    given: Any = obj.input_ids if obj.input_ids is not None else getattr(obj, "input_embeds", None)
    if not isinstance(given, list) or not given or not isinstance(given[0], list):
        return None
    one = obj.input_ids is None and bool(given[0]) and isinstance(given[0][0], float)  # one prompt's embeddings
    return None if one else len(given)
