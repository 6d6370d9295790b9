"""A newcomer's path: the README's commands, as the README has them, in an empty folder, home and environment.

`make` commands run in a fresh clone. What is installed by pip is installed into a fresh environment from the network; a
recall model stands in for the gated checkpoint, and a server is asked once. What needs Docker or a gated download is
named and left out."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks.launch import RECALL, ROOT, free_port
from hetero_sglang.errors import HeteroError, ending_the_process

GATED = "meta-llama/Llama-3.1-8B-Instruct"
LEFT_OUT = {"hf": "gated", "docker": "needs Docker"}
LONG = 3600.0  # seconds for a command
START = 300.0  # for a server


def main() -> None:
    """What every command did; exit code 1 where one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.newcomer", description=__doc__)
    parser.add_argument("--folder", type=Path, help="work there and leave it (a temporary folder)")
    parser.add_argument("--only", help="commands that contain these words")
    given = parser.parse_args()
    with ending_the_process(), tempfile.TemporaryDirectory() as scratch:
        walk = Walk(given.folder or Path(scratch))
        wanted = [each for each in commands((ROOT / "README.md").read_text()) if not given.only or given.only in each]
        if not wanted:
            raise HeteroError(f"no command of the README contains {given.only!r}: choose other words.")
        failed = sum(not walk.take(command) for command in wanted)
    sys.exit(1 if failed else 0)


def commands(text: str) -> Iterator[str]:
    """Of the fenced blocks that are commands, without their comments."""
    for block in re.findall(r"^ *```\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"\s+#.*", "", line).strip()
            if command.split(" ")[0] in ("make", "pip", "python", "hetero-sglang", *LEFT_OUT):
                yield command


class Walk:
    """A clone, a home and an environment that nobody has used."""

    def __init__(self, folder: Path) -> None:
        """HeteroError where the checkout is no git repository."""
        self.clone, self.venv = folder / "clone", folder / "venv"
        home = folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        kept = {name: os.environ[name] for name in ("LANG", "PIP_INDEX_URL", "PIP_CONFIG_FILE") if name in os.environ}
        self.env = {**kept, "HOME": str(home), "PATH": f"{self.venv}/bin:{os.environ['PATH']}"}
        if not self.clone.exists() and subprocess.run(["git", "clone", "-q", str(ROOT), str(self.clone)]).returncode:
            raise HeteroError(f"{ROOT} cannot be cloned: run this in a git checkout.")

    def take(self, command: str) -> bool:
        """Run one; say what it did, and whether it did it."""
        words = shlex.split(command)
        if words[0] in LEFT_OUT:
            print(f"left out ({LEFT_OUT[words[0]]}): {command}", flush=True)
            return True
        begun = time.monotonic()
        words = [str(RECALL) if word == GATED else word for word in words]
        if words[0] != "make" and not self.venv.exists():
            subprocess.run([sys.executable, "-m", "venv", str(self.venv)], check=True, env=self.env)
        done, last = self._serve(words) if "sglang.launch_server" in words else self._run(words)
        print(f"{'ok' if done else 'FAILED'}, {time.monotonic() - begun:.0f} s: {command}\n    {last}", flush=True)
        return done

    def _run(self, words: list[str]) -> tuple[bool, str]:
        out = self.clone / "command.log"
        with out.open("w") as log:
            ended = subprocess.run(words, cwd=self.clone, env=self.env, stdout=log, stderr=log, timeout=LONG)
        return ended.returncode == 0, next(iter(out.read_text().strip().splitlines()[-1:]), "")

    def _serve(self, words: list[str]) -> tuple[bool, str]:
        """Until the server has answered; then it is ended."""
        port = free_port()
        with (self.clone / "server.log").open("w") as log:
            server = subprocess.Popen(
                [*words, "--port", str(port)], cwd=self.clone, env=self.env, stdout=log, stderr=log
            )
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/generate",
            json.dumps({"text": "The", "sampling_params": {"max_new_tokens": 4}}).encode(),
            {"Content-Type": "application/json"},
        )
        end, said = time.monotonic() + START, "no answer"
        try:
            while server.poll() is None and time.monotonic() < end:
                try:
                    with urllib.request.urlopen(asked, timeout=60) as reply:
                        said = json.loads(reply.read())["text"]
                    return True, f"it said {said!r}"
                except OSError:
                    time.sleep(1)
            return False, said
        finally:
            server.terminate()
            server.wait(60)


if __name__ == "__main__":
    main()
