"""The same flags through sgl.Engine, `sglang serve` with a YAML file, and two tensor-parallel ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.launch import RECALL, Server
from benchmarks.recall import Language, score

ENGINE = """
import json, sys, time
import sglang as sgl

def main():
    ids, new = json.load(open(sys.argv[1]))
    engine = sgl.Engine(model_path=sys.argv[2], kv_policy="heterocache", hetero_keep_ratio=0.6, max_total_tokens=20000)
    reply = engine.generate(input_ids=ids, sampling_params={"temperature": 0, "max_new_tokens": new, "stop": ["\\n"]})
    for _ in range(2400):
        state = engine.get_server_info()["internal_states"][0]["hetero"]
        if state["integrity_current"]:
            break
        time.sleep(0.05)
    print("RESULT" + json.dumps({"text": reply["text"], "state": state, "meta": reply["meta_info"]}))
    engine.shutdown()

if __name__ == "__main__":
    main()
"""


@pytest.mark.server
def test_the_engine_takes_the_policy_as_a_keyword(language: Language, tmp_path: Path) -> None:
    document = language.document(8, 2600, 40)
    question = language.ask(document, 0, 4)
    (tmp_path / "job.json").write_text(json.dumps([document.ids + question.ids, question.max_answer_tokens + 2]))
    (tmp_path / "run.py").write_text(ENGINE)
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "job.json"), str(RECALL)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, done.stderr[-3000:]
    result = json.loads(lines[0].removeprefix("RESULT"))
    assert score(result["text"], document, question.names).right == 4
    assert result["state"]["keep_ratio"] == 0.6 and result["state"]["compressed_requests"] == 1
    assert result["state"]["integrity"] == "ok"
    assert result["meta"]["hetero"]["exact"] is False


@pytest.mark.server("two-ranks")
def test_a_yaml_file_and_two_ranks_serve_the_same_policy(server: Server, language: Language) -> None:
    """Rank-wise tiers: each rank holds its own heads, both agree on the number of slots."""
    document = language.document(9, 2600, 40)
    question = language.ask(document, 1, 8)
    before = server.stats()["compressed_requests"]
    reply = server.generate(document.ids + question.ids, question.max_answer_tokens + 2, stop=["\n"])
    stats = server.stats()
    assert score(reply["text"], document, question.names).right >= 7
    assert stats["keep_ratio"] == 0.7 and stats["compressed_requests"] == before + 1
    assert server.log.read_text(errors="replace").count("token slots 20000;") == 2
