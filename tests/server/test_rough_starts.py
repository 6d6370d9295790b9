"""What docs/faults.md promises of places where little can be written or mapped, of real servers that start there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tiny_models import write_checkpoint

from benchmarks.faults.load import Load
from benchmarks.faults.starts import Starts
from benchmarks.faults.tally import Tally
from benchmarks.launch import RECALL, Server
from benchmarks.recall import Language

PROMPT = list(range(3, 1500))


@pytest.mark.parametrize(
    ("options", "reason"),
    [("ro", "Read-only file system"), pytest.param("size=8k", "No space left on device", marks=pytest.mark.slow)],
)
def test_a_server_that_can_keep_no_head_profile_makes_one_and_serves(options: str, reason: str, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("mounts need a privilege that is not here")
    home, model = tmp_path / "home", write_checkpoint(tmp_path / "tiny", "qwen2", RECALL)
    home.mkdir()
    env = {"HOME": str(home), "XDG_CACHE_HOME": "", "FLASHINFER_WORKSPACE_BASE": str(tmp_path)}
    server = Server(model, env=env, kv_policy="heterocache", hetero_window=32, max_total_tokens=4000)
    line = f'mount -t tmpfs -o {options} none {home} && exec "$0" "$@"'
    server.command = ["unshare", "-m", "sh", "-c", line, *server.command]
    with server:
        assert server.process is not None
        log, inside = server.log.read_text(), Path(f"/proc/{server.process.pid}/root{home}")
        assert "The head profile is used and not kept" in log and reason in log
        assert server.get("/hetero/profile")["source"].startswith(f"/proc/{server.process.pid}/fd/")
        assert len(server.generate(PROMPT, 8, ignore_eos=True)["output_ids"]) == 8
        assert server.stats()["compressed_requests"] == 1
        assert [path for path in inside.rglob("*") if path.is_file() and path.stat().st_size] == []
    assert not [name for name in os.listdir("/dev/shm") if "hetero" in name]


def test_a_host_tier_that_cannot_be_mapped_is_refused_with_the_limit(language: Language, tmp_path: Path) -> None:
    tally = Tally()
    Starts(Load(language), tmp_path).once("memory-unmapped", tally)
    assert tally.held == 1, tally.said
