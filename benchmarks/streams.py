"""Several requests streamed at once, with the time of every token."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from dataclasses import dataclass, field


@dataclass
class Stream:
    """One greedy request; `times` are seconds on the monotonic clock, one per token as it arrived."""

    url: str
    ids: list[int]
    tokens: int
    sent: float = 0.0
    times: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Send the request and read it to its end; urllib's errors pass."""
        params = {"temperature": 0, "max_new_tokens": self.tokens, "ignore_eos": True}
        body = json.dumps({"input_ids": self.ids, "sampling_params": params, "stream": True}).encode()
        request = urllib.request.Request(self.url + "/generate", body, {"Content-Type": "application/json"})
        self.sent = time.monotonic()
        with urllib.request.urlopen(request, timeout=900) as reply:
            for line in reply:
                if line.startswith(b"data:") and b"[DONE]" not in line:
                    self.times.append(time.monotonic())

    @property
    def first_token_seconds(self) -> float:
        return self.times[0] - self.sent


def run_together(streams: list[Stream]) -> None:
    """All at once; returns when the last has ended."""
    threads = [threading.Thread(target=stream.run) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def step_seconds(streams: list[Stream]) -> float:
    """Seconds per decode step while every stream was in the batch: from the last one's start to the first one's end."""
    begin = max(stream.times[0] for stream in streams)
    end = min(stream.times[-1] for stream in streams)
    counts = [sum(begin < at <= end for at in stream.times) for stream in streams]
    if not all(counts) or end <= begin:
        raise ValueError("the requests did not run together; ask for more tokens of each")
    return (end - begin) * len(streams) / sum(counts)
