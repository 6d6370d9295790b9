"""No body ends the server: after each odd one a good request is answered, and nothing is lost."""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from typing import Any

import odd_bodies
import pytest
from test_conservation import settled
from waiting import PATIENCE_S

from benchmarks.launch import Server
from hetero_sglang.sglang.version import release

pytestmark = pytest.mark.server("usual")

GOOD = {"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
MESSAGE = {"role": "user", "content": "a"}
ROUTES: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "/generate": (GOOD, odd_bodies.GENERATE),
    "/v1/completions": ({"model": "x", "prompt": [5, 6], "max_tokens": 1, "temperature": 0}, odd_bodies.COMPLETIONS),
    "/v1/chat/completions": ({"model": "x", "messages": [MESSAGE], "max_tokens": 1}, odd_bodies.CHAT),
    "/v1/score": ({"model": "x", "query": [5], "items": [[6]], "label_token_ids": [7]}, odd_bodies.SCORE),
    "/v1/embeddings": ({"model": "x", "input": "a"}, odd_bodies.EMBEDDINGS),
}

SCHEMA = release() != "0.5.17"  # of /generate: SGLang itself refuses a field of another type, by its value
# bodies that ended the server before they were checked, and the field that the refusal names
NAMED = [
    ({"input_ids": [-1]}, "input_ids"),
    ({"input_ids": [[5], [10**6]]}, "input_ids"),
    ({"sampling_params": {"max_new_tokens": 1.5}}, "`1.5`" if SCHEMA else "max_new_tokens"),
    ({"sampling_params": {"logit_bias": {"5": 1e308}}}, "logit_bias"),
    ({"sampling_params": {"logit_bias": {"5": "x"}}}, r"\"x\"" if SCHEMA else "logit_bias"),
    ({"sampling_params": {"skip_special_tokens": 5}}, "`5`" if SCHEMA else "skip_special_tokens"),
    ({"return_logprob": True, "top_logprobs_num": 10**9}, "top_logprobs_num"),
    ({"sampling_params": {"n": 10**9}}, "n 1000000000"),
    ({"custom_labels": {"a": "b"}}, "custom_labels"),
    ({"rid": "HEALTH_CHECK_x"}, "rid"),  # never answered while another request runs
    ({"input_ids": [[5], [6]], "rid": ["a", "HEALTH_CHECK_x"]}, "rid"),
    *([({"sampling_params": {"beam_width": 2}}, "beam_width")] if SCHEMA else []),
]

RAW = [
    b"", b"{", b"null", b"5", b"[]", b"\xff\xfe", b"[" * 100000, b'{"text": "\xff"}', b'{"text": "\\ud800"}',
    b'{"input_ids": [5], "sampling_params": {"temperature": NaN}}', b'{"input_ids": [5], "input_ids": [-1]}',
    b'{"input_ids": [' + b"9" * 10000 + b"]}", b'{"input_ids": ' + b"[" * 50000 + b"]" * 50000 + b"}",
]  # fmt: skip


def send(server: Server, path: str, body: bytes) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        return reply.status, reply.read().decode(errors="replace")
    finally:
        connection.close()


def survives(server: Server, path: str, bodies: Sequence[bytes], wanted: int | None = None) -> None:
    """After each body a good request is answered; `wanted`: the status that every one must get."""
    for body in bodies:
        status, text = send(server, path, body)
        good, _ = send(server, "/generate", json.dumps(GOOD).encode())
        assert good == 200, f"{path} {body[:200]!r} ended the server: {server.tail(2000)}"
        assert wanted in (None, status), f"{path} {body[:200]!r} got {status}, not {wanted}: {text[:300]}"


@pytest.mark.parametrize("path", ROUTES)
def test_odd_fields_are_survived(server: Server, path: str) -> None:
    base, cases = ROUTES[path]
    survives(server, path, [json.dumps({**base, **case}).encode() for case in cases])


SAMPLING = [
    (400, odd_bodies.SAMPLING_REFUSED),
    (200, odd_bodies.SAMPLING_SERVED),
    (400 if SCHEMA else 200, odd_bodies.SAMPLING_LOOSE),
]


@pytest.mark.parametrize("status, cases", SAMPLING, ids=["refused", "served", "loose"])
def test_odd_sampling_parameters_are_answered_as_expected(server: Server, status: int, cases: list[Any]) -> None:
    bodies = [{**GOOD, "sampling_params": {**GOOD["sampling_params"], **case}} for case in cases]
    survives(server, "/generate", [json.dumps(body).encode() for body in bodies], status)


def test_a_refusal_names_its_field(server: Server) -> None:
    for case, word in NAMED:
        status, text = send(server, "/generate", json.dumps({**GOOD, **case}).encode())
        assert (status, word in text) == (400, True), f"{case}: {status} {text[:300]}"


def test_an_empty_prompt_is_refused_beside_another_too(server: Server) -> None:
    """SGLang would take its first token from what the other request has."""
    body = {"prompt": [[5], []], "model": "x", "max_tokens": 1, "temperature": 0}
    survives(server, "/v1/completions", [json.dumps(body).encode()], 400)
    bodies = [{**GOOD, "input_ids": ids} for ids in ([], [[]], [[5], []])]
    survives(server, "/generate", [json.dumps(body).encode() for body in bodies], 400)


def test_odd_bytes_are_survived(server: Server) -> None:
    survives(server, "/generate", RAW)


def test_odd_bodies_of_other_routes_are_survived_and_nothing_is_lost(server: Server) -> None:
    for path, body in odd_bodies.OTHERS:
        survives(server, path, [json.dumps(body).encode()])
    assert settled(server)["integrity"] == "ok"
