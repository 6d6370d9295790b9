"""One of two tensor-parallel ranks, a process of its own that was forked from the tests'."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from settled_args import settled_args
from sglang.srt.distributed import get_tp_group, init_distributed_environment, initialize_model_parallel
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead
from sglang.srt.runtime_context import get_parallel, publish
from toy import World

from benchmarks.launch import RECALL
from hetero_sglang.exits.branch import Branch
from hetero_sglang.exits.confidence import MEASURES
from hetero_sglang.exits.exits import Exits
from hetero_sglang.exits.operating_point import OperatingPoint
from hetero_sglang.sglang.early_exit.passes import EarlyExit, Rules
from hetero_sglang.sglang.early_exit.recorded import decode_batch, padding

HIDDEN, WORDS, LAYERS = 16, 100, 4  # so many words that a rank's share of them is padded
SURE = (0.2, 0.5, 0.8, 0.9, float("nan"))
THRESHOLD, STEPS = 0.5, 60


def decisions(rank: int) -> dict[str, Any]:
    """What two requests say, how deep they ran, and for each time that a branch was asked how sure this rank was, each
    in its own way, and whether they left."""
    with pytest.MonkeyPatch.context() as patch:
        world = World(patch, 1, [1, 3], THRESHOLD)
        world.exits.runner.tp_group = get_tp_group()
        dice, look, leaves = random.Random(rank), world.exits.look, world.exits._leaves
        asked = list[tuple[list[float], bool]]()

        def unsure(branch: Branch, state: torch.Tensor, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
            logits, sure = look(branch, state, batch)
            asked.append(([dice.choice(SURE) for _ in sure], False))
            return logits, torch.tensor(asked[-1][0])

        def noted(*args: Any) -> bool:
            left = leaves(*args)
            asked[-1] = (asked[-1][0], left)
            return left

        patch.setattr(world.exits, "look", unsure)
        patch.setattr(world.exits, "_leaves", noted)
        reqs = [world.begin([3, 1, 4]), world.begin([1, 5])]
        for _ in range(STEPS):
            world.step()
        for req in reqs:
            world.check(req)
        return {"asked": asked, "told": [(req.tokens, [depth for depth, _ in req.told]) for req in reqs]}


def kinds() -> dict[str, Branch]:
    """One that asks the model's head and one that has its own, behind layers 1 and 2."""
    random_ = torch.Generator().manual_seed(5)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random_)

    norm, own = some(HIDDEN), ({"down": some(2, HIDDEN), "up": some(HIDDEN, 2)}, {"head": some(WORDS, HIDDEN)})
    made = (Branch(n + 1, WORDS, 1e-5, norm, **each) for n, each in enumerate(own))
    return {branch.kind: branch for branch in made}


def head() -> torch.Tensor:
    """The model's own [V, H]."""
    return torch.randn(WORDS, HIDDEN, generator=torch.Generator().manual_seed(6))


def states() -> torch.Tensor:
    """Behind a layer [3, H]."""
    return torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(7))


def branches(confidence: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Logits and confidence by kind of branch, of a model whose head is shared out over the ranks."""
    lm_head = ParallelLMHead(WORDS, HIDDEN, params_dtype=torch.float32)
    lm_head.weight_loader(lm_head.weight, head())
    assert len(lm_head.weight) < WORDS
    processor = LogitsProcessor(SimpleNamespace(vocab_size=WORDS))
    model = SimpleNamespace(model=SimpleNamespace(forward=None), lm_head=lm_head, logits_processor=processor)
    points = tuple(OperatingPoint(share, (share,) * 2, LAYERS, (0.0, 0.0, 1.0)) for share in (0.5, 1.0))
    exits = Exits(LAYERS, HIDDEN, WORDS, confidence, tuple(kinds().values()), points)
    passes = EarlyExit(SimpleNamespace(model=model, tp_group=get_tp_group()), exits, Rules(0.5, False, 4))
    batch = decode_batch(padding(3, torch.device("cpu")))
    return {kind: passes.look(branch, states(), batch) for kind, branch in kinds().items()}


def work(rank: int, folder: Path) -> None:
    """Write what the rank has seen to `folder`."""
    torch.set_num_threads(1)  # others did not come along
    publish(settled_args(model_path=str(RECALL), device="cpu", tp_size=2), role="test")
    init_distributed_environment(2, rank, f"file://{folder}/store", rank, "gloo", timeout=60)
    initialize_model_parallel(2, backend="gloo")
    found: dict[str, Any] = decisions(rank)
    with torch.inference_mode(), get_parallel().override(attn_dp_size=1):
        found["branches"] = {confidence: branches(confidence) for confidence in MEASURES}
    torch.save(found, folder / f"{rank}.pt")
