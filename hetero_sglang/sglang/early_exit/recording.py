"""When parts of passes are made into graphs, and under which of SGLang's contexts."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from typing import Any

import torch

from hetero_sglang.cache.lanes import Recorder
from hetero_sglang.config import development
from hetero_sglang.sglang.backend import HeteroAttnBackend
from hetero_sglang.sglang.early_exit.attention import attention_of
from hetero_sglang.sglang.early_exit.passes import MOST, EarlyExit
from hetero_sglang.sglang.early_exit.plans import DensePlan, EagerPlan, Plan, TieredPlan
from hetero_sglang.sglang.early_exit.recorded import (
    TURNS,
    Asking,
    Copying,
    Part,
    Parts,
    Rows,
    at_least,
    up_to,
    widths_to,
)

logger = logging.getLogger("hetero_sglang")
AHEAD = 2  # layers: they take the device longer than an answer takes to the host and back


def record(passes: EarlyExit) -> None:
    """Once SGLang has built its backend and made its own graphs; LoRA's layers read a batch that no graph keeps."""
    runner = passes.runner
    passes.attention = attention_of(runner, (MOST + 1) * passes.rules.max_batch)
    on_device = runner.device == "cuda"
    wanted = runner.decode_cuda_graph_runner is not None if on_device else development.parts()
    if not wanted or runner.server_args.enable_lora or passes.rules.drafts:
        return
    began = time.monotonic()
    passes.stop_at(AHEAD)
    _warn(passes)
    if not passes.stops:
        return
    if isinstance(runner.attn_backend, HeteroAttnBackend) and (step := runner.attn_backend.engine.graph_step):
        passes.rules = replace(passes.rules, max_batch=min(passes.rules.max_batch, step.batch))
    with ExitStack() as contexts:
        if on_device:
            for context in _capturing():
                contexts.enter_context(context)
        parts = recorded(passes, _plan(passes), Recorder(torch.device(runner.device), runs=False))
    for graph in parts.graphs() if on_device else ():  # the first time takes longer; not while SGLang captures, which
        graph.replay()  # notes where ranks' sums lie when it ends
    passes.parts = parts
    took = time.monotonic() - began
    logger.info("early exit: %d parts of steps are graphs, made in %.1f s", len(parts.layers), took)


def _warn(passes: EarlyExit) -> None:
    asked = {stop.branch for stop in passes.stops}
    each = zip(passes.exits.branches, passes.thresholds, strict=True)
    late = [str(branch.layer) for number, (branch, least) in enumerate(each) if least < 1 and number not in asked]
    if late:
        logger.warning(
            "early exit: nobody leaves by the branches behind layers %s of %d: a pass would go on for %d while it asks",
            ", ".join(late), passes.exits.layers, AHEAD,
        )  # fmt: skip


def recorded(passes: EarlyExit, plan: Plan, recorder: Recorder) -> Parts:
    """For all batches that may leave early."""
    exits, rules, device = passes.exits, passes.rules, torch.device(passes.runner.device)
    parts, shape = Parts(widths_to(rules.max_batch)), (exits.hidden, passes.runner.dtype, device)
    for width, turns in product(parts.widths, up_to(TURNS, passes.late + 1)):
        rows = parts.rows[turns, width] = Rows(plan, turns, width, *shape)
        for first, last in pairwise((0, *(stop.layer for stop in passes.stops), exits.layers)):
            if not first and turns > 1:  # nobody waits before the first layer
                continue
            parts.layers[first, turns, width] = Part(passes.model, rows, first, last)
    asked = [exits.branches[stop.branch] for stop in passes.stops if stop.branch is not None]
    for branch, width in product(asked, parts.widths):
        look = partial(passes.look, branch, batch=parts.rows[1, width].batch)
        parts.asking[branch.layer, width] = Asking(look, width, *shape)
    for stop, width in product(passes.stops if rules.copied else (), parts.widths):
        parts.copying[stop.layer, width] = Copying(partial(passes.copy, stop.layer), parts.rows[1, width])
    for graph in parts.graphs():
        graph.record(recorder)
    return parts


def _plan(passes: EarlyExit) -> Plan:
    backend, width = passes.runner.attn_backend, passes.rules.max_batch
    late = at_least(TURNS, passes.late + 1) - 1
    if isinstance(backend, HeteroAttnBackend):
        if backend.engine.graph_step is None:
            backend.init_cuda_graph_state(width, width)
        return TieredPlan(backend, late, width)
    if passes.runner.device != "cuda":
        return EagerPlan(backend)
    return DensePlan(passes.attention.several, (late + 1) * width)


def _capturing() -> list[Any]:
    from sglang.srt.distributed.parallel_state import graph_capture
    from sglang.srt.model_executor.runner_utils.capture_mode import model_capture_mode

    return [model_capture_mode(), graph_capture()]
