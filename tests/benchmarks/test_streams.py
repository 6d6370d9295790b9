"""Step times and overlaps from the times at which tokens came."""

from __future__ import annotations

import pytest

from benchmarks.streams import Stream, gaps, peak, step_seconds


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


def test_messages_are_read_once_the_stream_has_ended() -> None:
    stream = Stream("", [], 0, times=[1, 2])
    stream._read([{"meta_info": {"completion_tokens": n, "finish_reason": None}} for n in (1, 3)])
    assert stream.counts == [1, 3] and not stream.error
    stream._read([{"meta_info": {"completion_tokens": 0, "finish_reason": {"type": "abort", "message": "too long"}}}])
    assert stream.error == "too long"


def test_requests_one_after_the_other_have_no_steps_together() -> None:
    with pytest.raises(ValueError, match="did not run together"):
        step_seconds([stream(0, 1), stream(2, 3)])


def test_peak_counts_streams_at_one_moment() -> None:
    assert peak([]) == 0
    assert peak([stream(0, 5), stream(1, 3), stream(3, 9)]) == 2
    assert peak([stream(0, 9), stream(1, 9), stream(2, 9), stream()]) == 3
