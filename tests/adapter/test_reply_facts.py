"""What a reply says of its request comes through SGLang's channel, whichever way chunks are cut."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.tokenizer_manager import _slice_streaming_output_meta_info

from hetero_sglang.sglang.replies import KEY, Once, Replies, settle

FACTS = {"kept_rows": 7}


def carried(aligned: bool, chunks: list[int], batch_mates: bool) -> dict[str, Any]:
    """The last chunk's meta_info, as SGLang makes it of a request's chunks of so many tokens."""
    accumulated: list[Any] = []
    at, once = 0, Once(FACTS, aligned)
    meta: dict[str, Any] = {}
    for number, count in enumerate(chunks):
        last = number == len(chunks) - 1
        if last or batch_mates:  # output_streamer pads those beside a request that has something to say
            accumulated.extend(once[at : at + count] if last else [None] * count)
            meta = {KEY: accumulated}
            if aligned:
                _slice_streaming_output_meta_info(meta, at, [KEY])
            if not last:
                assert KEY not in settle({"meta_info": dict(meta)})["meta_info"]
        at += count
    return settle({"meta_info": meta})["meta_info"]


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("batch_mates", [False, True])
@pytest.mark.parametrize("chunks", [[1], [5], [1, 1, 1], [3, 0], [2, 7, 4]])
def test_the_value_comes_once_with_the_last_chunk(aligned: bool, batch_mates: bool, chunks: list[int]) -> None:
    assert carried(aligned, chunks, batch_mates) == {KEY: FACTS}


def test_others_answers_stay_as_they_are() -> None:
    for answer in ({"meta_info": {"id": "a"}}, {"text": "x"}, [{"meta_info": {}}, {"meta_info": {KEY: FACTS}}], "x"):
        assert settle(answer) == answer
    assert settle([{"meta_info": {KEY: []}}, {"meta_info": {KEY: [None]}}]) == [{"meta_info": {}}, {"meta_info": {}}]


def test_what_a_model_says_of_its_tokens_is_kept() -> None:
    import numpy as np
    import torch

    from hetero_sglang.cache.tally import Tally

    req = SimpleNamespace(customized_info={"own": [1, 2]})
    account = SimpleNamespace(rows=SimpleNamespace(caps=np.array([10, 100])))
    came = torch.tensor([[5, 7], [0, 2]])
    Replies(False).tell(req, SimpleNamespace(tally=Tally(resumed=True, appended_tokens=3)), account, came, 40)
    assert req.customized_info["own"] == [1, 2]
    assert req.customized_info[KEY][0:2] == [
        {
            "kept_rows": 50,
            "all_rows": 80,
            "exact": False,
            "resumed": True,
            "appended_tokens": 3,
            "fetched_rows": 12,
            "late_rows": 2,
            "refills": 0,
        }
    ]
