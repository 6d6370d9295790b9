"""Arguments are read from ServerArgs, which knows its model."""

import dataclasses
from typing import Any

from hetero_sglang.sglang.interface import Flag

FLAGS: tuple[Flag, ...] = (
    (
        "speculative_algorithm",
        (None, "NGRAM", "ngram"),
        "--speculative-algorithm: a draft model has keys and values of its own, in no working set; NGRAM has none",
    ),
)
EIGHT_BITS_ON_CPU = True


def model_config(args: Any) -> Any:
    return args.get_model_config()


def default(kind: type, name: str) -> Any:
    return next(field.default for field in dataclasses.fields(kind) if field.name == name)


def names(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def values(args: Any) -> dict[str, Any]:
    return dataclasses.asdict(args)


def settle(args: Any) -> None: ...
