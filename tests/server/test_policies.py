"""Every policy in a real server: exact where nothing is compressed, near its budget where something is, no leaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from servers import ALIKE, RATIO, Servers
from settled_args import settled_args
from test_conservation import check_empty_handed, settled

from benchmarks.launch import RECALL, Server
from benchmarks.recall import Language
from hetero_sglang.cache.sizes import Shape
from hetero_sglang.config.settings import HOT_PAGE
from hetero_sglang.errors import HeteroError
from hetero_sglang.policy.base import Refresh
from hetero_sglang.policy.registry import POLICIES
from hetero_sglang.profile.files import load_profile
from hetero_sglang.sglang.asked import decide_for

HEADS, DIM, ITEM = 8 * 4, 64, 2  # of the recall model: KV heads of all layers, their width, bytes of a number
ROW = 2 * DIM * ITEM
PIVOTS = {"kv_policy": "heterocache", "hetero_index": "none"}


@dataclass(frozen=True)
class Prompt:
    """Token ids, and how many to generate."""

    ids: list[int]
    new: int


@dataclass(frozen=True)
class Prompts:
    """Short ones stay whole at every ratio; the users share a document and ask for different names of it."""

    short: list[Prompt]
    users: list[Prompt]
    document: list[int]


# One that chooses once, and one by an index; the others, whose own rules tests/core/test_policies_in_engine.py checks,
# are served in the same ways.
QUICK = ("snapkv", "quest")


def marks(name: str) -> list[pytest.MarkDecorator]:
    """SGLang's own answers are asked for beside the policy's."""
    return [pytest.mark.server(name, "plain"), *([] if name in QUICK else [pytest.mark.slow])]


@pytest.fixture(params=[pytest.param(name, marks=marks(name)) for name in ALIKE])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def prompts(language: Language) -> Prompts:
    short = []
    for seed in range(3):
        document = language.document(seed, 84, 3)
        question = language.ask(document, seed, 2)
        short.append(Prompt(document.ids + question.ids, 127 - len(document.ids + question.ids)))
    document = language.document(17, 1600, 24)
    names = sorted(document.entries)
    users = []
    for chosen in (names[:4], names[-4:]):
        question = language.question(chosen)
        users.append(Prompt(document.ids + question.ids, question.max_answer_tokens))
    return Prompts(short, users, document.ids)


def answers(server: Server, some: list[Prompt]) -> list[list[int]]:
    """Greedy tokens of prompts sent one after the other, none of which finds a prefix of another's."""
    found = []
    for prompt in some:
        server.flush()
        found.append(server.generate(prompt.ids, prompt.new)["output_ids"])
    return found


@pytest.fixture
def plain(servers: Servers, prompts: Prompts, found: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    """What SGLang alone answers to the short prompts and to the users; asked once."""
    if not found:
        server = servers.get("plain")
        found |= {"short": answers(server, prompts.short), "users": answers(server, prompts.users)}
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, list[list[int]]]:
    return {}


@pytest.mark.usefixtures("name")
def test_short_requests_get_the_tokens_of_plain_sglang(
    server: Server, prompts: Prompts, plain: dict[str, list[list[int]]]
) -> None:
    before = settled(server)
    assert answers(server, prompts.short) == plain["short"]
    after = settled(server)
    assert after["compressed_requests"] == before["compressed_requests"]
    check_empty_handed(after)


def test_long_prompts_keep_what_the_ratio_allows_and_fetch_as_the_policy_does(
    server: Server, prompts: Prompts, name: str
) -> None:
    before = settled(server)
    answers(server, prompts.users)
    after = settled(server)
    check_empty_handed(after)
    grown = {key: after[key] - before[key] for key in ("compressed_requests", "kept_bytes", "dense_bytes")}
    assert grown["compressed_requests"] == len(prompts.users)
    tokens = sum(len(prompt.ids) + prompt.new for prompt in prompts.users)
    assert grown["dense_bytes"] == tokens * HEADS * ROW
    # A head holds its share of the rows, rounded up, in whole pages, of which the index has its own; a hot row also
    # has its position and score.
    hot = Shape(DIM, DIM, ITEM).hot_row
    most = RATIO * tokens + len(prompts.users) * (1 + 2 * (HOT_PAGE - 1))
    assert RATIO * tokens * HEADS * hot <= grown["kept_bytes"] <= most * HEADS * hot
    chooses = POLICIES[name].refresh is Refresh.STEP
    assert (after["fetched_rows"] > before["fetched_rows"]) == chooses
    assert not after["worker_up"]  # it serves anchors alone


@pytest.mark.usefixtures("name")
def test_users_of_one_document_answer_together_as_they_do_alone(server: Server, prompts: Prompts) -> None:
    alone = answers(server, prompts.users)
    assert alone[0] != alone[1]
    server.flush()
    server.generate(prompts.document, 1)  # a third user, by whom the others find the document's slots filled
    new = max(prompt.new for prompt in prompts.users)
    sampling = {"temperature": 0, "max_new_tokens": new}
    ids = [prompt.ids for prompt in prompts.users]
    together = server.post("/generate", {"input_ids": ids, "sampling_params": sampling})
    # all but the observed queries came from the tree
    assert min(reply["meta_info"]["cached_tokens"] for reply in together) >= len(prompts.document) - 64
    assert [reply["output_ids"] for reply in together] == alone
    check_empty_handed(settled(server))


@pytest.mark.slow
@pytest.mark.server("quest-whole", "plain")
def test_an_index_policy_that_keeps_everything_gives_plain_tokens(
    server: Server, prompts: Prompts, plain: dict[str, list[list[int]]]
) -> None:
    assert answers(server, prompts.users) == plain["users"]
    stats = settled(server)
    assert stats["compressed_requests"] == 0 and stats["fetched_rows"] == 0
    check_empty_handed(stats)


@pytest.mark.server("roles")
def test_heterocache_decides_roles_reassigns_and_waits(server: Server, prompts: Prompts) -> None:
    before = settled(server)
    found = answers(server, prompts.users)
    stats = settled(server)
    check_empty_handed(stats)
    assert [len(ids) for ids in found] == [prompt.new for prompt in prompts.users]
    assert stats["compressed_requests"] == before["compressed_requests"] + len(found)
    assert stats["drift_checks"] > before["drift_checks"]
    profile = load_profile(RECALL / "hetero_profile.json")
    assert stats["floor"] == decide_for(profile, RATIO).floor != profile.floor


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"kv_policy": "snapkv", "hetero_reassign": True}, "--hetero-reassign .* snapkv has none"),
        ({"kv_policy": "quest", "hetero_reassign": True}, "--hetero-reassign .* quest has none"),
        ({"kv_policy": "quest", "hetero_ablation": "uniform"}, "--hetero-ablation uniform .* not of quest"),
        ({"kv_policy": "quest", "hetero_profile": str(RECALL / "hetero_profile.json")}, "--hetero-profile .* quest"),
        ({"kv_policy": "quest", "hetero_keep_ratio": 1 / 16}, r"quest .* 0\.0625 .* --hetero-keep-ratio 0\.0625"),
        ({"kv_policy": "fier", "hetero_window": 31}, "fier .* 32 tokens: .* --hetero-window 31"),
        ({"kv_policy": "kvcluster", "hetero_keep_ratio": 0.09}, r"kvcluster .* 0\.0938 "),
        ({**PIVOTS, "hetero_roles": "ratio", "hetero_keep_ratio": 0.01}, "keep ratio 0.01"),
        ({"kv_policy": "quest", "hetero_roles": "ratio"}, "--hetero-roles ratio is not read by .* quest"),
        ({"kv_policy": "snapkv", "hetero_drift_threshold": 0.5}, "--hetero-drift-threshold 0.5 is not read"),
        ({"kv_policy": "snapkv", "hetero_retrieval": "off"}, "--hetero-retrieval off .* fetches nothing"),
        ({"kv_policy": "snapkv", "hetero_monitor_interval": 2}, "--hetero-monitor-interval 2 .* chooses once"),
        ({"kv_policy": "rocketkv", "hetero_retrieval": "replace"}, "replace .* rocketkv watches none"),
    ],
)
def test_what_a_policy_cannot_do_is_refused_in_one_sentence(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(HeteroError, match=words) as refusal:
        settled_args(model_path=str(RECALL), **flags)
    said = str(refusal.value)
    assert "\n" not in said and said.endswith(".") and ". " not in said
