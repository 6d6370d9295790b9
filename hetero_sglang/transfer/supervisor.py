"""Keeps one retrieval worker running: start, wait for its hello, kill, wait until it is gone, start again."""

import logging
from collections.abc import Callable

from hetero_sglang.transfer.process import WorkerProcess

logger = logging.getLogger(__name__)

_START_S = 30.0  # from start to hello
_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 5.0
_PROVEN_S = 10.0  # a worker that lived this long does not count as a repeated crash


class Supervisor:
    """Owns the worker that `launch()` starts.

    Call `tend` often, and from one thread: the kernel ties a worker's life to the thread that started it."""

    def __init__(self, launch: Callable[[], WorkerProcess]) -> None:
        self._launch = launch
        self.restarts = -1  # starts after the first; -1: there was none
        self._dying: WorkerProcess | None = None
        self._delay = _FIRST_DELAY_S
        self._start_at = 0.0
        self._started_at = 0.0
        self.worker: WorkerProcess | None = None  # the one requests go to, once it is up

    @property
    def up(self) -> bool:
        return self.worker is not None and self.worker.up

    def tend(self, now: float) -> str | None:
        """Do what is due. Returns why the worker is gone or has to go, then call `condemn`."""
        if self.worker is None:
            self._start(now)
        elif self.worker.gone():
            return self.worker.ending()
        elif self.worker.up:
            return self.worker.stalled(now)
        elif now - self._started_at > _START_S:
            return f"did not start within {_START_S:g} s"
        return None

    def condemn(self, reason: str, now: float) -> None:
        """Kill the worker; another starts after a delay that doubles with every crash in a row."""
        worker = self.worker
        assert worker is not None
        if now - self._started_at > _PROVEN_S:
            self._delay = _FIRST_DELAY_S
        logger.warning(
            "The retrieval worker (pid %d) %s; working sets stay as they are and another starts in %.1f s.",
            worker.pid,
            reason,
            self._delay,
        )
        worker.kill()
        worker.close()
        self._put_off(now)
        self.worker, self._dying = None, worker

    def close(self, timeout_s: float) -> None:
        """Kill whatever runs and wait for its end."""
        for worker in (self.worker, self._dying):
            if worker is not None:
                worker.kill()
                worker.wait(timeout_s)
                worker.close()
        self.worker = self._dying = None

    def _start(self, now: float) -> None:
        if now < self._start_at or (self._dying is not None and not self._dying.gone()):
            return
        self.restarts += 1
        self._started_at = now
        try:
            self.worker = self._launch()
        except OSError as error:
            self._put_off(now)
            logger.warning("The retrieval worker cannot be started (%s).", error)

    def _put_off(self, now: float) -> None:
        self._start_at = now + self._delay
        self._delay = min(_LONGEST_DELAY_S, 2 * self._delay)
