"""The argument parser of our commands."""

import argparse
from typing import NoReturn

from hetero_sglang.errors import HeteroError


class Parser(argparse.ArgumentParser):
    """An argument parser whose refusals are one sentence."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raises HeteroError; `main` prints it."""
        raise HeteroError(f"{message}; see `{self.prog} --help`.")
