"""Branches as text for a terminal: what they are, what an agreement costs, what one threshold for all would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hetero_sglang.exits.calibrate import HeldOut
from hetero_sglang.exits.exits import Exits
from hetero_sglang.exits.operating_point import OperatingPoint

_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)


def figures(calibrated: HeldOut, checked: HeldOut, rows: Sequence[OperatingPoint]) -> dict[str, Any]:
    """What a report shows beside the calibration, for provenance: `alone`, the agreement of each branch if every token
    left there; `sweep`, one threshold for all branches; `checked`, the rows on text that chose no threshold."""
    found = [checked.point(row.thresholds) for row in rows]
    sweep = [(threshold, calibrated.point([threshold] * len(calibrated.layers))) for threshold in _THRESHOLDS]
    return {
        "tokens_calibrated": calibrated.tokens,
        "tokens_checked": checked.tokens,
        "alone": [round(float(each), 5) for each in calibrated.agrees.mean(1)],
        "sweep": [
            {"threshold": threshold, "agreement": round(point.agreement, 5), "depth": round(point.depth, 4)}
            for threshold, point in sweep
        ],
        "checked": [
            {
                "agreement": round(point.agreement, 5),
                "depth": round(point.depth, 4),
                "loss": round(checked.loss(point.thresholds), 5),
            }
            for point in found
        ],
    }


def report(exits: Exits) -> str:
    """Origin, branches, the calibration and, where the file has it, the sweep of one threshold."""
    parts = [_origin(exits), _branches(exits), _calibration(exits), _sweep(exits.provenance)]
    return "\n\n".join(part for part in parts if part)


def table(name: Any, provenance: Mapping[str, Any], keys: Sequence[str], length: int | None = None) -> list[Any]:
    """Rows of numbers in provenance, [] where there are none: nobody vouches for what a file says of itself."""
    rows = provenance.get(name)
    if not isinstance(rows, list) or (length is not None and len(rows) != length):
        return []
    usable = all(
        isinstance(row, Mapping) and all(type(row.get(key)) in (int, float) for key in keys) if keys
        else type(row) in (int, float)
        for row in rows
    )  # fmt: skip
    return rows if usable else []


def _origin(exits: Exits) -> str:
    about = exits.provenance
    line = f"{about.get('model') or 'a model'}: {exits.layers} layers, {exits.hidden} hidden dimensions, "
    line += f"{exits.vocabulary} words; confidence by {exits.confidence}"
    counts = [about.get(f"tokens_{each}") for each in ("trained", "calibrated", "checked")]
    if all(isinstance(count, int) for count in counts):
        line += "\ntrained on {} tokens, thresholds from {}, checked on {} others".format(*counts)
    return line


def _branches(exits: Exits) -> str:
    alone = table("alone", exits.provenance, (), len(exits.branches))
    lines = ["branch  layer  kind      size    agrees, if all left there"]
    for number, branch in enumerate(exits.branches):
        line = f"{number:6}  {branch.layer:5}  {branch.kind:<8}  {branch.size:<6}"
        lines.append(line + (f"  {alone[number]:.4f}" if alone else ""))
    return "\n".join(lines)


def _calibration(exits: Exits) -> str:
    checked = table("checked", exits.provenance, ("agreement", "depth", "loss"), len(exits.calibration))
    head = "agreement  mean depth  share that runs so many layers"
    place = max(len(head), 23 + 8 * len(exits.depths)) + 2
    head = f"{head:<{place}}" + ("on other text, loss in nats above full depth's" if checked else "")
    lines = [head, f"{'':21}  " + "".join(f"{depth:>7} " for depth in exits.depths)]
    for number, row in enumerate(exits.calibration):
        shares = "".join(f"{share:7.3f} " for share in row.share)
        line = f"{row.agreement:9.3f}  {row.depth:10.2f}  {shares}"
        if checked:
            found = checked[number]
            line = f"{line:<{place}}{found['agreement']:.4f} at {found['depth']:.2f}, loss {found['loss']:+.4f}"
        lines.append(line.rstrip())
    lines += ["", "agreement  threshold of each branch (1: never)"]
    for row in exits.calibration:
        lines.append(f"{row.agreement:9.3f}  " + " ".join(f"{threshold:.5f}" for threshold in row.thresholds))
    return "\n".join(lines)


def _sweep(provenance: Mapping[str, Any]) -> str:
    rows = table("sweep", provenance, ("threshold", "agreement", "depth"))
    if not rows:
        return ""
    lines = ["one threshold for all branches", "threshold  agreement  mean depth"]
    lines += [f"{row['threshold']:9.3f}  {row['agreement']:9.4f}  {row['depth']:10.2f}" for row in rows]
    return "\n".join(lines)
