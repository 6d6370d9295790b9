"""Policies are known by the same names everywhere, each names its paper, and the documented example works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from naive import check_choice, fresh, picked_by

from benchmarks.quality.cell import Cell, parse_cells
from hetero_sglang.config import choices
from hetero_sglang.policy.base import Policy
from hetero_sglang.policy.registry import POLICIES
from hetero_sglang.profile.ablation import ABLATIONS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "add-a-policy.md"


def test_the_flag_takes_plain_sglang_and_every_registered_policy() -> None:
    assert len(set(choices.POLICIES)) == len(choices.POLICIES)
    assert set(choices.POLICIES) == {"full", *POLICIES}


def test_every_ablation_that_a_flag_takes_is_there_and_no_other() -> None:
    assert len(set(choices.ABLATIONS)) == len(choices.ABLATIONS)
    assert set(choices.ABLATIONS) == set(ABLATIONS)


def test_the_quality_benchmark_takes_every_choice_of_the_flags() -> None:
    assert parse_cells(choices.POLICIES, [0.5]) == [
        Cell(name, None if name == "full" else 0.5) for name in choices.POLICIES
    ]
    for flag, names in choices.CHOICES.items():
        option = flag.removeprefix("hetero_")
        policy_s = flag.startswith("hetero_") and flag != "hetero_exit_kv"  # of branches, which no policy has
        for name in names if policy_s else ():
            if name != "none":  # nothing left out: heterocache itself
                assert parse_cells([f"heterocache:{option}={name}"], [0.5])[0].flags[flag] == name


def test_names_are_known_without_torch_and_sglang() -> None:
    loaded = "import sys, hetero_sglang.config.choices; print({'torch', 'sglang'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert said == "set()\n"


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_is_made_without_arguments_and_names_its_paper(name: str) -> None:
    made = POLICIES[name]()
    assert made.name == name
    module = sys.modules[type(made).__module__].__doc__ or ""
    assert re.search(r"\(arXiv \d{4}\.\d{5}\)", module.splitlines()[0]), module


def examples(monkeypatch: pytest.MonkeyPatch) -> list[Policy]:
    """The policies of the page that shows how to write one."""
    found = []
    for number, block in enumerate(re.findall(r"```python\n(\"\"\".*?)```", PAGE.read_text(), re.DOTALL)):
        module = ModuleType(f"example_{number}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(block, module.__dict__)
        made = [each for each in vars(module).values() if getattr(each, "__module__", "") == module.__name__]
        found += [each() for each in made if issubclass(each, Policy)]
    return found


def test_the_documented_policies_choose_by_their_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    norms, blocks = examples(monkeypatch)
    q, k = fresh(5, 2, 3, 8), fresh(70, 2, 8)
    picked = picked_by(norms, norms.scores(q, k, 0.3), [9, 4], 4, 60)
    check_choice(picked, [9, 4], 4, 60)
    for head, positions in enumerate(picked):
        lengths = k[4:60, head].norm(dim=-1)
        least = lengths.argsort()[: positions.numel()] + 4
        assert positions.tolist() == least.sort().values.tolist()

    assert blocks.index is not None
    span = blocks.index.span
    scores = blocks.scores(q, k, 0.3)
    assert scores.shape == (2, 70) and scores.dtype == torch.float32
    for head in range(2):
        for token in range(70 // span * span):
            mean = k[token // span * span : (token // span + 1) * span, head].mean(0)
            wanted = max(float(query @ mean) for query in q[-1, head])
            assert float(scores[head, token]) == pytest.approx(wanted, abs=1e-5)
