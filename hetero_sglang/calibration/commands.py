"""`hetero-sglang profile ...`: a verb on a profile, or a model to calibrate."""

from __future__ import annotations

from hetero_sglang.calibration.verbs import VERBS


def run(argv: list[str]) -> int:
    """A first word that is no verb is taken for the checkpoint (write ./show for a folder called show)."""
    if argv and argv[0] in VERBS:
        return VERBS[argv[0]](argv[1:])
    from hetero_sglang.calibration.calibrate_command import run as calibrate

    return calibrate(argv, ", ".join(VERBS))
