"""RULER-style and LongBench-style files: the shipped ones run, wrong ones are named by line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fake_quality_server import FakePolicyServer, right_answer, serving

from benchmarks.quality.files.__main__ import main
from benchmarks.quality.files.cut import cutter
from benchmarks.quality.files.lines import Line, read_lines
from benchmarks.quality.files.longbench import DATASETS, longbench_prompt
from benchmarks.quality.files.metrics import all_in, any_in
from benchmarks.quality.files.ruler import ruler_prompt
from benchmarks.recall import Language
from hetero_sglang.errors import HeteroError

SHIPPED = Path(__file__).parents[2] / "benchmarks" / "quality" / "samples"
MODEL = str(Path(__file__).parents[2] / "assets" / "recall-8m")


def run(fake: FakePolicyServer, out: Path, style: str, data: Path, *more: str) -> dict[str, Any]:
    words = ["--format", style, "--data", str(data), "--out", str(out), "--model", MODEL, "--policies", "full"]
    assert main([*words, "--url", fake.url, *more]) == 0
    return json.loads((out / "aggregate.json").read_text())


@pytest.mark.parametrize("style, name", [("ruler", "ruler"), ("longbench", "longbench")])
@pytest.mark.parametrize("chat", [[], ["--chat"]])
def test_right_answers_to_the_shipped_files_score_1(
    language: Language, tmp_path: Path, style: str, name: str, chat: list[str]
) -> None:
    data = SHIPPED / f"{name}.jsonl"
    read = ruler_prompt if style == "ruler" else longbench_prompt
    known = {prompt.text: prompt for prompt in map(read, read_lines(data))}

    def answer(text: str) -> str:
        answers = known[text].answers
        return " ".join(answers) if style == "ruler" else answers[0]

    with serving(FakePolicyServer(language, complete=answer)) as fake:
        result = run(fake, tmp_path, style, data, *chat)
        assert len(fake.prompts) == len(known)
        run(fake, tmp_path, style, data, *chat)
        assert len(fake.prompts) == len(known)
    assert result["cells"][0]["score"] == 1.0
    assert {row["task"] for row in result["rows"]} == {prompt.task for prompt in known.values()}


def test_the_shipped_recall_file_is_the_recall_language(language: Language, tmp_path: Path) -> None:
    with serving(FakePolicyServer(language, complete=right_answer)) as fake:
        result = run(fake, tmp_path, "ruler", SHIPPED / "recall.jsonl", "--limit", "3")
    assert result["cells"][0]["samples"] == 3
    assert result["cells"][0]["score"] == 1.0


def test_a_wrong_part_costs_its_share(language: Language, tmp_path: Path) -> None:
    data = tmp_path / "vt.jsonl"
    data.write_text(json.dumps({"input": "?", "outputs": ["A", "B", "C", "D"], "length": 4085}) + "\n")
    with serving(FakePolicyServer(language, complete=lambda text: "a, b, c")) as fake:
        [row] = run(fake, tmp_path / "out", "ruler", data)["rows"]
    assert (row["task"], row["length"], row["score"]) == ("vt", 4096, 0.75)


def test_rulers_questions_take_any_answer_and_its_other_tasks_all() -> None:
    fields = {"input": "?", "answer_prefix": " It is", "outputs": ["a", "b"]}
    line = Line(Path("data/qa_1/validation.jsonl"), 1, fields)
    assert (ruler_prompt(line).task, ruler_prompt(line).metric) == ("qa_1", any_in)
    assert ruler_prompt(line).text == "? It is"
    assert ruler_prompt(Line(Path("data/cwe.jsonl"), 1, fields)).metric is all_in


@pytest.mark.parametrize("name", DATASETS)
def test_every_template_holds_context_and_question(name: str) -> None:
    fields = {"context": "THE {CONTEXT}", "input": "THE QUESTION", "answers": ["x"], "dataset": name}
    text = longbench_prompt(Line(Path("f.jsonl"), 1, fields)).text
    assert text.count("THE {CONTEXT}") == 1
    asks = name not in ("gov_report", "multi_news", "passage_count")
    assert text.count("THE QUESTION") == asks


def test_long_prompts_lose_their_middle(language: Language) -> None:
    text = language.document(0, 400, 8).text
    ids = language.encode(cutter(MODEL, 101)(text))
    assert ids == language.encode(text)[:50] + language.encode(text)[-51:]
    assert cutter(MODEL, 400)(text) == text
    with pytest.raises(HeteroError, match="--max-prompt-tokens"):
        cutter("/nowhere", 100)


@pytest.mark.parametrize(
    "style, text, said",
    [
        ("ruler", '{"input": "?"}', "Line 1 of .* has no texts 'outputs'"),
        ("ruler", '{"input": "?", "outputs": []}', "has no texts 'outputs'"),
        ("ruler", '{"outputs": ["a"]}', "has no text 'input'"),
        ("ruler", "\n[1]\n", "Line 2 of .* is no JSON object"),
        ("ruler", "", "have no lines"),
        ("longbench", '{"dataset": "trek"}', "dataset 'trek'"),
        ("longbench", '{"dataset": "trec", "context": "c", "input": "i"}', "has no texts 'answers'"),
    ],
)
def test_wrong_files_end_in_one_sentence(
    style: str, text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data.jsonl").write_text(text)
    words = [
        "--format",
        style,
        "--data",
        str(tmp_path / "data.jsonl"),
        "--out",
        str(tmp_path / "out"),
        "--model",
        MODEL,
    ]
    assert main([*words, "--list"]) == 2
    shown = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", shown)
    assert re.search(said, shown)


def test_a_file_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--format", "ruler", "--data", str(tmp_path / "no.jsonl"), "--out", str(tmp_path), "--model", MODEL]
    assert main([*words, "--list"]) == 2
    assert re.fullmatch(r"error: Cannot read [^\n]+\n", capsys.readouterr().err)
