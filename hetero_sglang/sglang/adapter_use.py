"""Who uses a LoRA adapter, as SGLang 0.5.17's main process counts it: an adapter is unloaded once nobody does.

It counts every prompt of a call before it reads them, and one less whenever a request ends
(managers/tokenizer_manager.py). A prompt that cannot be read never ends, nor do those behind it; and for `n` samples
it sends one request more than it has counted. Then nobody is left who ends, and unloading would wait for good."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any


def counting(manager: Any) -> Callable[[Any], AbstractContextManager[None]]:
    """To be entered with a call around its handling: once all that it has sent has ended, it is counted no more."""
    registry, handled = manager.lora_registry, ContextVar[tuple[Any, Counter[str]] | None]("handled", default=None)
    running: set[asyncio.Task[None]] = set()  # held until they are done

    def soon(work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        running.add(task)
        task.add_done_callback(running.discard)

    def sends(made: Any) -> None:
        call = handled.get()
        if call is None or getattr(made, "lora_id", None) is None:
            return
        obj, sent = call
        sent[made.lora_id] += 1
        if sent[made.lora_id] > counted(obj)[made.lora_id]:
            soon(registry._counters[made.lora_id].increment(notify_all=False))

    send_one, send_batch = manager._send_one_request, manager._send_batch_request

    def send_one_request(made: Any) -> None:
        sends(made)
        send_one(made)

    def send_batch_request(several: list[Any]) -> None:
        for made in several:
            sends(made)
        send_batch(several)

    manager._send_one_request, manager._send_batch_request = send_one_request, send_batch_request

    @contextmanager
    def around(obj: Any) -> Iterator[None]:
        sent: Counter[str] = Counter()
        handled.set((obj, sent))
        try:
            yield
        except BaseException:
            for adapter in (counted(obj) - sent).elements():
                soon(registry.release(adapter))
            raise

    return around


def counted(obj: Any) -> Counter[str]:
    """How often each adapter's id is counted for a call."""
    given = getattr(obj, "lora_id", None)
    return Counter(each for each in (given if isinstance(given, list) else [given]) if each is not None)
