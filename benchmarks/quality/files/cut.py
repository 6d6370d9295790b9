"""Cutting prompts that are longer than a model reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hetero_sglang.errors import HeteroError


def cutter(model: str, most: int | None) -> Callable[[str], str]:
    """Takes tokens out of a text's middle until `most` are left: instructions stand at both ends.

    Raises HeteroError if `most` is given and the model has no tokenizer.json.
    """
    if most is None:
        return lambda text: text
    from tokenizers import Tokenizer

    path = Path(model) / "tokenizer.json"
    if most < 2 or not path.is_file():
        raise HeteroError(f"--max-prompt-tokens {most} needs {path}, and must be 2 or more.")
    tokenizer = Tokenizer.from_file(str(path))

    def cut(text: str) -> str:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) <= most:
            return text
        head = most // 2
        return tokenizer.decode(ids[:head]) + tokenizer.decode(ids[head - most :])

    return cut
