"""The parts of pages that the code says: `make pages` writes them anew between their marks."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
import types
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"(<!-- made by `make pages`: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def flags() -> str:
    """Our fields of SGLang's arguments: flag, default, words and meaning."""
    from sglang.srt.arg_groups.arg_utils import Arg
    from sglang.srt.server_args import ServerArgs

    from hetero_sglang.config.choices import CHOICES
    from hetero_sglang.sglang.args import HeteroServerArgs, one_of
    from hetero_sglang.sglang.interface import Configuration
    from hetero_sglang.sglang.version import installed

    configuration: Configuration = installed("configuration")
    theirs, hints = set(configuration.names(ServerArgs)), get_type_hints(HeteroServerArgs, include_extras=True)
    lines = ["| flag | default | takes | meaning |", "|---|---|---|---|"]
    for name in configuration.names(HeteroServerArgs):
        if name in theirs:
            continue
        kind, *more = get_args(hints[name])
        (arg,) = (each for each in more if isinstance(each, Arg))
        meaning = arg.help.removesuffix(one_of(name)).removesuffix(".")
        words = CHOICES.get(name)
        takes = ", ".join(f"`{word}`" for word in words) if words else _kind(kind)
        default = _default(configuration.default(HeteroServerArgs, name))
        lines.append(f"| `--{name.replace('_', '-')}` | {default} | {takes} | {meaning} |")
    return "\n".join(lines)


def _kind(kind: Any) -> str:
    names = {bool: "nothing", int: "a whole number", float: "a number", str: "a file", list[str]: "a list"}
    return next(names[each] for each in (get_args(kind) if isinstance(kind, types.UnionType) else [kind]))


def _default(value: Any) -> str:
    return {None: "see right", False: "off"}.get(value) or f"`{value}`"


def refused() -> str:
    """SGLang's flags that the policies refuse, last those that one version alone has."""
    from hetero_sglang.sglang.refusals import FLAGS
    from hetero_sglang.sglang.version import TESTED, folder

    lines = ["| flag | refused, because | served |", "|---|---|---|"]
    of_one = [(each, f" (SGLang {v})") for v in TESTED for each in import_module(f"{folder(v)}.configuration").FLAGS]
    for (_, fine, reason), where in [*((each, "") for each in FLAGS), *of_one]:
        flag, why = reason.split(": ", 1)
        served = ", ".join(f"`{value}`" for value in fine if value not in (None, False, [], {}))
        lines.append(f"| `{flag}`{where} | {why} | {served or 'unset'} |")
    return "\n".join(lines)


def architectures() -> str:
    """What is served, by Hugging Face's names."""
    from hetero_sglang.sglang.refusals import MODELS

    return ", ".join(f"`{name}`" for name in MODELS) + "."


def metrics() -> str:
    """Ours on /metrics."""
    from hetero_sglang.sglang.metrics import HISTOGRAM, METRICS, SECONDS, TENTHS

    table = _metrics(METRICS)
    named = ", ".join(f"`{each.name}`" for each in METRICS if each.kind == HISTOGRAM and "seconds" in each.name)
    ends = f"\n\nThe buckets of {named} end at {', '.join(f'{x:g}' for x in SECONDS)} seconds"
    return table + f"{ends}, those of shares at {', '.join(f'{x:g}' for x in TENTHS)}."


def early_exit_metrics() -> str:
    """Those of a model with branches."""
    from hetero_sglang.sglang.early_exit.report import METRICS

    return _metrics(METRICS)


def _metrics(table: Iterable[Any]) -> str:
    from hetero_sglang.sglang.metrics import PREFIX

    rows = [f"| `{x.name}` | {x.kind} | {f'`{x.label}`' if x.label else ''} | {x.help} |" for x in table]
    return "\n".join([f"| `{PREFIX}` | kind | label | meaning |", "|---|---|---|---|", *rows])


def _size(*arguments: str, **config: Any) -> str:
    from benchmarks import shapes
    from hetero_sglang.cli import main

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as out:
        model = shapes.write(Path(folder) / "Llama-3.1-8B-Instruct", {**shapes.LLAMA_8B, **config})
        if main(["size", str(model), *arguments]):
            raise RuntimeError(f"hetero-sglang size {' '.join(arguments)} was refused")
    return out.getvalue().strip()


LLAMA = {"max_position_embeddings": 131072}
CARDS = ("--gpu-memory", "24", "48", "80", "141", "--keep-ratio", "0.25")


def _block(text: str) -> str:
    assumptions, tables = text.split("\n\n", 1)
    return f"```text\n{assumptions}\n```\n\n{tables}"


def sizes() -> str:
    """Of Llama-3.1-8B on four cards: all that the command says."""
    return _block(_size(*CARDS, **LLAMA))


def sizes_of_32k() -> str:
    """The last table, for requests of 32K at most."""
    return _size(*CARDS, "--context-length", "32768", **LLAMA).split("\n\n")[-1]


def sizes_of_64_gb() -> str:
    """The last table, with 64 GB of host memory for each GPU."""
    return _size(*CARDS, "--host-size", "64", **LLAMA).split("\n\n")[-1]


def sizes_of_two() -> str:
    """The last table, on two GPUs of each kind."""
    return _size(*CARDS, "--tp", "2", **LLAMA).split("\n\n")[-1]


PARTS: dict[str, Callable[[], str]] = {
    "flags": flags,
    "refused": refused,
    "architectures": architectures,
    "metrics": metrics,
    "early-exit-metrics": early_exit_metrics,
    "sizes": sizes,
    "sizes-32k": sizes_of_32k,
    "sizes-64gb": sizes_of_64_gb,
    "sizes-two": sizes_of_two,
}


def rendered(text: str) -> str:
    """A page with its parts as the code says them now."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n\n{found[4]}", text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(rendered(page.read_text()))
