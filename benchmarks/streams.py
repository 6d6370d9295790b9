"""Several requests streamed at once, with the time of every token."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Stream:
    """One greedy request; `times` are seconds on the monotonic clock, one per message, `counts` tokens so far then.

    A server that is busy puts several tokens in one message.
    """

    url: str
    ids: list[int]
    tokens: int
    sent: float = 0.0
    times: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    error: str = ""

    def run(self) -> None:
        """Send the request and read it to its end; what went wrong is kept in `error`."""
        params = {"temperature": 0, "max_new_tokens": self.tokens, "ignore_eos": True}
        body = json.dumps({"input_ids": self.ids, "sampling_params": params, "stream": True}).encode()
        request = urllib.request.Request(self.url + "/generate", body, {"Content-Type": "application/json"})
        messages: list[bytes] = []
        self.sent = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=900) as reply:
                for line in reply:
                    if line.startswith(b"data:") and b"[DONE]" not in line:
                        self.times.append(time.monotonic())
                        messages.append(line)
        except (urllib.error.URLError, OSError) as error:
            self.error = str(error)
        self._read([json.loads(message[5:]) for message in messages])  # only now: reading takes time

    @property
    def first_token_seconds(self) -> float:
        return self.times[0] - self.sent

    def tokens_by(self, at: float) -> int:
        """Tokens that had come by then."""
        place = bisect_right(self.times, at)
        return self.counts[place - 1] if place else 0

    def _read(self, messages: list[dict[str, Any]]) -> None:
        for message in messages:
            told = message.get("meta_info", {})
            self.counts.append(told.get("completion_tokens", 0))
            reason = told.get("finish_reason") or {}
            if "error" in message or reason.get("type") == "abort":
                self.error = str(message.get("error") or reason.get("message"))


def run_together(streams: list[Stream]) -> None:
    """All at once; returns when the last has ended. RuntimeError when the server refused one."""
    threads = [threading.Thread(target=stream.run) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for stream in streams:
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
    begin, end = window(streams)
    counts = [stream.tokens_by(end) - stream.tokens_by(begin) for stream in streams]
    if not all(counts):
        raise ValueError("the requests did not run together; ask for more tokens of each")
    return (end - begin) * len(streams) / sum(counts)


def gaps(streams: list[Stream]) -> list[float]:
    """Seconds from token to token of each stream while every stream was in the batch."""
    begin, end = window(streams)
    found: list[float] = []
    for stream in streams:
        within = [(at, n) for at, n in zip(stream.times, stream.counts, strict=True) if begin <= at <= end]
        for (before, few), (after, many) in zip(within, within[1:], strict=False):
            found += [(after - before) / (many - few)] * (many - few) if many > few else []
    return found


def peak(streams: list[Stream]) -> int:
    """How many streams were between their first and last token at the same moment."""
    held = [stream for stream in streams if stream.times]
    starts = (stream.times[0] for stream in held)
    return max((sum(s.times[0] <= at < s.times[-1] for s in held) for at in starts), default=0)
