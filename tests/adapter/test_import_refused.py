"""A home that cannot be written, where SGLang cannot be imported, ends the start in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys


def test_where_sglang_cannot_be_imported_is_said_in_one_sentence() -> None:
    register = "from hetero_sglang import plugin; plugin.register()"
    env = os.environ | {"FLASHINFER_WORKSPACE_BASE": "/dev/null"}
    ended = subprocess.run([sys.executable, "-c", register], capture_output=True, text=True, env=env)
    assert ended.returncode == 2
    said = ended.stderr.splitlines()[-1]
    assert said.startswith("error: SGLang cannot be imported (") and "/dev/null" in said
    assert said.endswith("set HOME, or FLASHINFER_WORKSPACE_BASE, to a folder that can be written.")
