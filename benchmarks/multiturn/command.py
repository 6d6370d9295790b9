"""Command line of the load generator; flags are named as those of SGLang's bench_multiturn.py and bench_serving."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from tqdm import tqdm

from benchmarks import results
from benchmarks.quality.plots import load_pyplot
from hetero_sglang.errors import HeteroError, ending_the_process

from . import compare
from .backends import BACKENDS
from .content import Content, RandomTokens, Recall
from .drive import Turn, drive
from .load import Load, talks
from .summary import summary, table
from .watch import first_word, watch


def main(arguments: Sequence[str] | None = None) -> None:
    """Load a server and write what came of it, or compare two runs."""
    given = make_parser().parse_args(arguments)
    with ending_the_process():
        if given.compare:
            _compare(*given.compare)
        else:
            uvloop.run(run(given, load_of(given)))


def load_of(given: argparse.Namespace) -> Load:
    """The load that is asked for. Raises HeteroError for one that cannot be."""
    load = Load(**{field.name: getattr(given, field.name) for field in fields(Load)})
    check(load, given.max_parallel)
    return load


def check(load: Load, most: int | None) -> None:
    """Raises HeteroError for a load that cannot be."""
    if load.num_clients + load.short_chats < 1:
        raise HeteroError("--num-clients 0 and no --short-chats: pass 1 or more of either.")
    for name in ("num_rounds", "documents", "document_length", "request_length", "output_length"):
        if getattr(load, name) < 1:
            raise HeteroError(f"--{name.replace('_', '-')} {getattr(load, name)}: pass 1 or more.")
    for name, least in (("num_clients", load.num_clients), ("short_chats", load.short_chats)):
        if least < 0:
            raise HeteroError(f"--{name.replace('_', '-')} {least}: pass 0 or more.")
    if min(load.short_lengths) < 1:
        raise HeteroError(f"--short-lengths {min(load.short_lengths)}: pass 1 or more.")
    if most is not None and most < 1:
        raise HeteroError(f"--max-parallel {most}: pass 1 or more, or leave it out.")
    for name in ("abort_rate", "output_spread"):
        if not 0 <= getattr(load, name) <= 1:
            raise HeteroError(f"--{name.replace('_', '-')} {getattr(load, name)}: pass 0 to 1.")
    if load.request_rate is not None and load.request_rate <= 0:
        raise HeteroError(f"--request-rate {load.request_rate}: pass more than 0, or leave it out.")
    if not 0 <= load.think_time[0] <= load.think_time[1]:
        raise HeteroError(f"--think-time {load.think_time[0]} {load.think_time[1]}: pass the shorter one first.")


async def run(given: argparse.Namespace, load: Load) -> dict[str, Any]:
    """Hold the conversations; what came of them. A run that is interrupted keeps what it has."""
    content: Content = RandomTokens(load) if given.recall is None else Recall(load, given.recall, given.names)
    if given.recall is not None and given.backend != "sglang":
        raise HeteroError("--recall asks by token ids: use --backend sglang.")
    turns: list[Turn] = []
    samples: list[dict[str, Any]] = []
    held = talks(load)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        model = await first_word(session, given.base_url, given.backend)
        backend = BACKENDS[given.backend](session, given.base_url, model)
        begun = time.perf_counter()
        watching = asyncio.create_task(watch(session, given.base_url, samples))
        stopped = None
        with tqdm(total=sum(len(talk.rounds) for talk in held), unit="turn", disable=None) as bar:

            def tell(turn: Turn) -> None:
                turns.append(turn)
                bar.update()
                bar.set_postfix(tokens=sum(each.output_tokens for each in turns), refresh=False)

            try:
                await drive(held, backend, content, given.max_parallel, tell)
            except (KeyboardInterrupt, asyncio.CancelledError):
                stopped = f"interrupted after {len(turns)} turns"
            finally:
                watching.cancel()
    seconds = time.perf_counter() - begun
    numbers = summary(turns, seconds, given.slo_ttft, given.slo_itl)
    told = {
        "tag": given.tag or model,
        "backend": given.backend,
        "model": model,
        "stopped": stopped,
        "load": asdict(load),
    }
    made = {**told, "summary": numbers, "samples": samples}
    print(table(numbers))
    for error in list(dict.fromkeys(turn.error for turn in turns if turn.error))[:3]:
        print(f"a turn failed: {error}")
    print("saved", results.save(given.name, made))
    if given.log_file:
        with given.log_file.open("a", encoding="utf-8") as log:  # a line a run, as bench_multiturn.py does
            stamp = time.strftime("%Y-%m-%d %H:%M:%S")
            log.write(json.dumps({"timestamp": stamp, "tag": told["tag"], **numbers}) + "\n")
    if given.output_details:
        lines = (json.dumps(turn.as_dict()) for turn in turns)
        given.output_details.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if not turns or all(turn.error for turn in turns):
        raise HeteroError(f"No turn was answered by {given.base_url}.")
    return made


def _compare(one: Path, other: Path) -> None:
    first, second = compare.read(one), compare.read(other)
    print(compare.table(first, second))
    if pyplot := load_pyplot():
        print("saved", compare.plot(pyplot, first, second, other.with_suffix(".png")))


def make_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.multiturn", description=__doc__)
    add, usual = parser.add_argument, Load()
    add("--backend", choices=sorted(BACKENDS), default="sglang", help="sglang: /generate by token ids; openai: chat")
    add("--base-url", default="http://127.0.0.1:30000")
    add("--num-clients", type=int, default=usual.num_clients, help="conversations, each of one client (16)")
    add("--num-rounds", type=int, default=usual.num_rounds, help="turns of a conversation (4)")
    add("--documents", type=int, default=usual.documents, help="that conversations are about (10)")
    add("--document-length", type=int, default=usual.document_length, metavar="TOKENS")
    add("--zipf", type=float, default=usual.zipf, metavar="A", help="document k is chosen by 1 / k ** A (1)")
    add("--system-length", type=int, default=0, metavar="TOKENS", help="that all conversations begin with (0)")
    add("--request-length", type=int, default=usual.request_length, metavar="TOKENS", help="of a message (128)")
    add("--output-length", type=int, default=usual.output_length, metavar="TOKENS", help="of an answer (128)")
    add("--output-spread", type=float, default=0.0, metavar="X", help="answers are within 1 - X and 1 + X of that (0)")
    add("--think-time", type=float, nargs=2, default=usual.think_time, metavar=("FROM", "TO"), help="seconds (0.2 1)")
    add("--request-rate", type=float, metavar="R", help="conversations that begin in a second, Poisson (all at once)")
    add("--max-parallel", type=int, metavar="N", help="messages in flight at most (any number)")
    add("--abort-rate", type=float, default=0.0, metavar="X", help="share of answers whose reader leaves (0)")
    add("--short-chats", type=int, default=0, metavar="N", help="clients beside them, who share nothing (0)")
    add("--short-lengths", type=int, nargs="+", default=usual.short_lengths, metavar="TOKENS",
        help="that these begin with, in turn (200 400 800)")  # fmt: skip
    add("--seed", type=int, default=0)
    add("--recall", type=Path, metavar="MODEL", help="entries to look up, in this recall model's language: checked")
    add("--names", type=int, default=3, help="entries that a question asks for (3)")
    add("--slo-ttft", type=float, default=2.0, metavar="SECONDS", help="for goodput (2)")
    add("--slo-itl", type=float, default=0.05, metavar="SECONDS", help="for goodput, the mean of an answer (0.05)")
    add("--tag", help="what the run is called (the model's name)")
    add("--log-file", type=Path, help="append the run's numbers here, a line a run")
    add("--output-details", type=Path, metavar="FILE", help="every turn, a line each")
    add("--name", default="multiturn", help="of the JSON in results/")
    add("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two such JSONs: ratios, and a PNG beside B")
    return parser
