"""What one request has been through."""

from dataclasses import dataclass


@dataclass
class Tally:
    """As far as the host knows it, without asking the device."""

    number: int = 0  # working sets begun since the start, this one among them
    resumed: bool = False  # it went on with the rows of one that had ended
    appended_tokens: int = 0  # new tokens of its prompt that attended to a working set
    refills: int = 0  # of heads, by rankings of the worker
    steps: int = 0  # decode steps, or verifications
