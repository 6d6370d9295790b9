"""Several requests streamed at once, with the time of every token."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from http.client import HTTPException
from statistics import mean


@dataclass
class Stream:
    """One request, greedy unless `temperature` is above 0; `times` are seconds on the monotonic clock, one per message,
    `counts` tokens so far then.

    A server that is busy puts several tokens in one message; `every`: it is asked to put that many in each, so that
    many streams together do not wait for this process.
    """

    url: str
    ids: list[int]
    tokens: int
    every: int = 1
    temperature: float = 0.0
    sent: float = 0.0
    times: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    error: str = ""
    lines: list[bytes] = field(default_factory=list)

    def run(self) -> None:
        """Send the request and take its messages to the end; what went wrong is kept in `error`."""
        asked = {"max_new_tokens": self.tokens, "ignore_eos": True, "stream_interval": self.every}
        params = {"temperature": self.temperature, **asked}
        body = json.dumps({"input_ids": self.ids, "sampling_params": params, "stream": True}).encode()
        request = urllib.request.Request(self.url + "/generate", body, {"Content-Type": "application/json"})
        self.sent = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=900) as reply:
                for line in reply:
                    if line.startswith(b"data:") and b"[DONE]" not in line:
                        self.times.append(time.monotonic())
                        self.lines.append(line)
        except (HTTPException, OSError) as error:  # URLError is one
            self.error = str(error)

    def read(self) -> None:
        """Find `counts` in the messages; not while any stream runs, as it takes time."""
        for message in (json.loads(line[5:]) for line in self.lines):
            told = message.get("meta_info", {})
            self.counts.append(told.get("completion_tokens", 0))
            reason = told.get("finish_reason") or {}
            if "error" in message or reason.get("type") == "abort":
                self.error = str(message.get("error") or reason.get("message"))
        self.lines.clear()

    @property
    def first_token_seconds(self) -> float:
        return self.times[0] - self.sent

    def within(self, begin: float, end: float) -> list[float]:
        """Seconds from token to token of the messages between two times; those of one message came evenly."""
        held = [(at, n) for at, n in zip(self.times, self.counts, strict=True) if begin <= at <= end]
        found: list[float] = []
        for (before, few), (after, many) in zip(held, held[1:], strict=False):
            found += [(after - before) / (many - few)] * (many - few) if many > few else []
        return found


def run_together(streams: list[Stream]) -> None:
    """All at once; returns when the last has ended. RuntimeError when the server refused one."""
    threads = [threading.Thread(target=stream.run, daemon=True) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for stream in streams:
        if not stream.error:
            stream.read()
        if stream.error:
            raise RuntimeError(f"a request of {len(stream.ids)} tokens failed: {stream.error}")


def window(streams: list[Stream]) -> tuple[float, float]:
    """From the last stream's first token to the first one's last: all were in the batch. ValueError when never."""
    begin = max(stream.times[0] for stream in streams)
    end = min(stream.times[-1] for stream in streams)
    if end <= begin:
        raise ValueError("the requests did not run together; ask for more tokens of each")
    return begin, end


def step_seconds(streams: list[Stream]) -> float:
    """Mean seconds per decode step while every stream was in the batch."""
    return mean(gaps(streams))


def gaps(streams: list[Stream]) -> list[float]:
    """Seconds from token to token of each stream while every stream was in the batch. ValueError as of `window`."""
    begin, end = window(streams)
    found = [stream.within(begin, end) for stream in streams]
    if not all(found):
        raise ValueError("the requests did not run together; ask for more tokens of each")
    return [gap for own in found for gap in own]


def peak(streams: list[Stream]) -> int:
    """How many streams were between their first and last token at the same moment."""
    held = [stream for stream in streams if stream.times]
    starts = (stream.times[0] for stream in held)
    return max((sum(s.times[0] <= at < s.times[-1] for s in held) for at in starts), default=0)
