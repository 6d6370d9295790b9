"""Step times and overlaps from the times at which tokens came."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import streams as module
from benchmarks.streams import Stream, gaps, peak, run_together, step_seconds


def stream(*times: float) -> Stream:
    return Stream("", [], 0, times=list(times), counts=list(range(1, len(times) + 1)))


def test_steps_are_those_in_which_all_ran() -> None:
    streams = [stream(0, 1, 2, 3, 4), stream(2, 4, 6)]
    assert step_seconds(streams) == pytest.approx(2 * 2 / 3)
    assert gaps(streams) == [1, 1, 2]


def test_a_message_may_carry_several_tokens() -> None:
    late = Stream("", [], 0, times=[0, 1, 4, 5], counts=[1, 2, 5, 6])
    assert step_seconds([late]) == 1
    assert gaps([late]) == [1, 1, 1, 1, 1]


def test_many_tokens_per_message_leave_no_step_out() -> None:
    every = 8
    one = Stream("", [], 0, times=[0.0, 0.8, 1.6, 2.4], counts=[1, 1 + every, 1 + 2 * every, 1 + 3 * every])
    two = Stream("", [], 0, times=[0.3, 1.1, 1.9, 2.7], counts=[1, 1 + every, 1 + 2 * every, 1 + 3 * every])
    assert step_seconds([one, two]) == pytest.approx(0.1)
    assert len(gaps([one, two])) == 4 * every


def test_a_stream_without_a_step_in_common_is_refused() -> None:
    with pytest.raises(ValueError, match="did not run together"):
        gaps([stream(0, 1, 2, 3), stream(0.5, 9)])


def line(**told: Any) -> bytes:
    return b"data: " + json.dumps({"meta_info": told}).encode()


def test_messages_are_read_once_the_stream_has_ended() -> None:
    stream = Stream("", [], 0, times=[1, 2], lines=[line(completion_tokens=n, finish_reason=None) for n in (1, 3)])
    stream.read()
    assert stream.counts == [1, 3] and not stream.error and not stream.lines
    stream.lines = [line(completion_tokens=0, finish_reason={"type": "abort", "message": "too long"})]
    stream.read()
    assert stream.error == "too long"


def test_what_a_request_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    class Reply(list):
        def __enter__(self) -> Reply:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def urlopen(request: Any, timeout: float) -> Reply:
        sent.append((request.full_url, json.loads(request.data)))
        return Reply([line(completion_tokens=1), b"\n", line(completion_tokens=9), b"\n", b"data: [DONE]\n"])

    monkeypatch.setattr(module.urllib.request, "urlopen", urlopen)
    asked = Stream("http://here", [5, 6], 9, every=8)
    run_together([asked])
    assert sent[0][0] == "http://here/generate" and sent[0][1]["input_ids"] == [5, 6]
    params = sent[0][1]["sampling_params"]
    assert (params["max_new_tokens"], params["stream_interval"]) == (9, 8)
    assert asked.counts == [1, 9] and len(asked.times) == 2


def test_a_server_that_is_gone_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def urlopen(request: Any, timeout: float) -> None:
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(module.urllib.request, "urlopen", urlopen)
    with pytest.raises(RuntimeError, match="a request of 2 tokens failed: reset by peer"):
        run_together([Stream("http://here", [5, 6], 9)])


def test_requests_one_after_the_other_have_no_steps_together() -> None:
    with pytest.raises(ValueError, match="did not run together"):
        step_seconds([stream(0, 1), stream(2, 3)])


def test_peak_counts_streams_at_one_moment() -> None:
    assert peak([]) == 0
    assert peak([stream(0, 5), stream(1, 3), stream(3, 9)]) == 2
    assert peak([stream(0, 9), stream(1, 9), stream(2, 9), stream()]) == 3
