"""A plain server on a machine without a GPU: no variable set, no --device, no compiler."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from benchmarks.launch import Server
from hetero_sglang.cpu.platform import ENGINE_VARIABLE

pytestmark = [
    pytest.mark.server("plain-paged"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="the server would take the GPU"),
]
NAMES = ["Noka", "Peza", "Rovi", "Geve", "Kuka", "Modo", "Niro", "Rehu"]


def generate(server: Server, text: str, tokens: int, **sampling: object) -> str:
    params = {"temperature": 0, "max_new_tokens": tokens, **sampling}
    return server.post("/generate", {"text": text, "sampling_params": params})["text"]


def prompt(asked: int) -> str:
    """Eight entries, of which the last line asks one."""
    facts = "".join(f" Entry {name} {200 + 7 * i} {900 - 11 * i}." for i, name in enumerate(NAMES))
    filler = " The quiet river carries the golden lantern over the old bridge." * (6 * asked)
    return f"<s>{filler}{facts}{filler}\nQuestion: {NAMES[asked]}?\nAnswer:"


def test_paged_requests_that_crowd_the_pool_all_get_their_own_answer(server: Server) -> None:
    with ThreadPoolExecutor(len(NAMES)) as pool:
        answers = list(pool.map(lambda asked: generate(server, prompt(asked), 24), range(len(NAMES))))
    for i, (name, answer) in enumerate(zip(NAMES, answers, strict=True)):
        assert answer.startswith(f" {name} {200 + 7 * i} {900 - 11 * i}")


def test_a_cached_prefix_gives_the_same_answer_as_a_fresh_one(server: Server) -> None:
    replies = [generate(server, prompt(3), 40) for _ in range(2)]
    assert replies[0] == replies[1]


def test_penalties_and_seeds_need_no_compiler(server: Server) -> None:
    assert generate(server, prompt(1), 8, repetition_penalty=1.2, frequency_penalty=0.3, presence_penalty=0.1)
    assert generate(server, prompt(1), 8, temperature=0.8, sampling_seed=3)


@pytest.mark.parametrize(
    "constraint",
    [
        {"regex": r"(copper|feather) hammer"},
        {"ebnf": 'root ::= "copper hammer" | "feather hammer"'},
        {"json_schema": json.dumps({"enum": ["copper hammer", "feather hammer"]})},
    ],
)
def test_constrained_output_obeys_its_grammar(server: Server, constraint: dict[str, str]) -> None:
    text = generate(server, prompt(2), 40, temperature=1.0, **constraint)
    assert re.fullmatch(r'"?(copper|feather) hammer"?', text)


def test_the_server_chose_its_settings_by_itself(server: Server) -> None:
    info = server.get("/server_info")
    assert (info["device"], info["attention_backend"], info["page_size"]) == ("cpu", "torch_native", 16)
    assert ENGINE_VARIABLE not in server.env
