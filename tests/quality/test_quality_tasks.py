"""Every task gives an oracle 1.0, and a wrong number costs exactly its entry."""

from __future__ import annotations

import re

import pytest
from fake_quality_server import FakePolicyServer, serving

from benchmarks.quality.client import Client
from benchmarks.quality.sample import Sample
from benchmarks.quality.tasks import TASKS
from benchmarks.recall import Language

SAMPLES = [
    pytest.param(task, point, id=f"{task.name}-{'-'.join(map(str, point.values()))}")
    for task in TASKS.values()
    for point in task.reduced
]


def entries_of(sample: Sample) -> int:
    steps = [step for steps in sample.script.conversations for step in steps]
    return sum(step.expected.count(",") + 1 for step in steps)


def spoil(answer: str) -> str:
    """Another first number in the last entry."""
    head, comma, last = answer.rpartition(",")
    name, number, *rest = last.split()
    return head + comma + " " + " ".join([name, "200" if number == "100" else "100", *rest])


@pytest.mark.parametrize("task, point", SAMPLES)
def test_an_oracle_gets_all_of_it_right(language: Language, task, point) -> None:
    sample = Sample(task, 3072, 0, point, language)
    with serving(FakePolicyServer(language)) as fake:
        result = sample.run(Client(fake.url))
    assert result["score"] == 1.0
    assert result["right"] == result["total"] == entries_of(sample)
    assert all(exchange["got"] == exchange["expected"] for exchange in result["exchanges"])


@pytest.mark.parametrize("task, point", SAMPLES)
def test_one_wrong_number_per_answer_costs_one_entry_of_each(language: Language, task, point) -> None:
    sample = Sample(task, 3072, 1, point, language)
    with serving(FakePolicyServer(language, distort=spoil)) as fake:
        result = sample.run(Client(fake.url))
    answers, total = len(result["exchanges"]), entries_of(sample)
    assert result["right"] == total - answers
    assert result["score"] == (total - answers) / total


@pytest.mark.parametrize("task, point", SAMPLES)
@pytest.mark.parametrize("length", [2048, 8192])
def test_a_document_has_its_length_and_its_seed(language: Language, task, point, length: int) -> None:
    script = Sample(task, length, 0, point, language).script
    for steps in script.conversations:
        assert sum(len(step.context) for step in steps) == length
        assert steps[0].context[0] == language.bos
    assert script.digest == Sample(task, length, 0, point, language).script.digest
    assert script.digest != Sample(task, length, 1, point, language).script.digest


@pytest.mark.parametrize("depth", [0, 0.3, 1])
def test_a_needle_lies_at_its_depth(language: Language, depth: float) -> None:
    [[step]] = Sample(TASKS["needle"], 2048, 0, {"depth": depth}, language).script.conversations
    assert list(step.context).index(language.token[" Entry"]) == 1 + round(depth * 2042)


def test_dense_entries_touch(language: Language) -> None:
    [[step]] = Sample(TASKS["dense"], 2048, 0, {"questions": 1, "names": 8}, language).script.conversations
    text = language.decode(step.context)
    assert len(re.findall(r"( Entry \w+ \d+ \d+\.)", text)) == 400
    assert re.search(r"( Entry \w+ \d+ \d+\.){400}", text)


def test_a_late_question_follows_thousands_of_tokens_without_entries(language: Language) -> None:
    [[step]] = Sample(TASKS["late"], 8192, 0, {"names": 8}, language).script.conversations
    last = max(at for at, token in enumerate(step.context) if token == language.token[" Entry"])
    assert last < 2048


def test_turns_ask_about_earlier_parts_and_never_about_later_ones(language: Language) -> None:
    [steps] = Sample(TASKS["turns"], 4096, 0, {"parts": 4, "names": 8}, language).script.conversations
    told: list[int] = []
    back = 0
    for step in steps:
        names = re.findall(r" ([A-Z]\w+) ", step.expected)
        before = language.decode(told)
        told += step.context
        assert all(f" Entry {name} " in language.decode(told) for name in names)
        back += sum(f" Entry {name} " in before for name in names)
    assert back


def test_all_users_but_the_first_ask_at_once(language: Language) -> None:
    sample = Sample(TASKS["shared"], 2048, 0, {"users": 6, "names": 2}, language)
    with serving(FakePolicyServer(language)) as fake:
        sample.run(Client(fake.url))
    assert len({tuple(prompt) for prompt in fake.prompts}) == 6
    assert all(prompt[:2048] == fake.prompts[0][:2048] for prompt in fake.prompts)


def test_a_long_answer_is_traced_and_asked_about_again(language: Language) -> None:
    sample = Sample(TASKS["long"], 2048, 0, {"names": 24}, language)
    with serving(FakePolicyServer(language)) as fake:
        first, second = sample.run(Client(fake.url))["exchanges"]
    tokens = [at["tokens"] for at in first["trace"]]
    assert tokens == sorted(tokens) and tokens[-1] == 96 and len(tokens) > 8
    assert first["trace"][-1]["drift_triggers"] > first["trace"][0]["drift_triggers"]
    assert "trace" not in second
    asked = re.findall(r"[A-Z]\w+", second["expected"])
    assert set(asked) <= set(re.findall(r"[A-Z]\w+", first["expected"])[:12])
    generated = language.encode(first["got"] + "\n")
    assert fake.prompts[1][len(fake.prompts[0]) :][: len(generated)] == generated


def test_counters_are_those_of_the_sample(language: Language) -> None:
    sample = Sample(TASKS["names"], 2048, 0, {"names": [1, 2]}, language)
    with serving(FakePolicyServer(language)) as fake:
        result = sample.run(Client(fake.url))
    assert fake.flushes == 1
    assert result["counters"]["kept_bytes"] == 600
    assert result["counters"]["dense_bytes"] == 2000
    assert result["counters"]["late_rows"] == 2
    assert result["integrity"] == ["ok", "ok"]


def test_a_server_without_counters_is_measured_without_them(language: Language) -> None:
    sample = Sample(TASKS["long"], 2048, 0, {"names": 16}, language)
    with serving(FakePolicyServer(language, counts=False)) as fake:
        result = sample.run(Client(fake.url))
    assert result["score"] == 1.0
    assert set(result["counters"].values()) == {None}
