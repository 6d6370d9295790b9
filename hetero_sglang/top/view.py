"""One event of a server as a terminal shows it."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

MOST = 20  # requests that are listed
UNITS = ("B", "KB", "MB", "GB", "TB")


def view(url: str, event: dict[str, Any]) -> RenderableType:
    """Every replica in turn, under what holds for the server."""
    return Group(_head(url, event), *(part for rank in event["ranks"] for part in _rank(rank)))


def lost(url: str) -> Text:
    """The server has gone."""
    return Text(f"{url} is gone; trying again every two seconds, Ctrl-C ends.", "red")


def size(count: float) -> str:
    """Bytes, in the unit that leaves one to three digits before the point."""
    unit = 0
    while count >= 1000 and unit < len(UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.0f} {UNITS[unit]}" if count >= 100 or not unit else f"{count:.1f} {UNITS[unit]}"


def _head(url: str, event: dict[str, Any]) -> Text:
    rates = event["rates"]
    told = {name: "..." if value is None else f"{value:,.0f}" for name, value in rates.items()}
    running = sum(rank["running"] for rank in event["ranks"])
    return Text(
        f"{url}   {running} requests run, {event['waiting']} wait\n"
        f"{told['decoded_tokens']} tokens/s generated, {told['prefilled_tokens']} tokens/s of prompts read, "
        f"{told['fetched_rows']} rows/s fetched from the host"
    )


def _rank(rank: dict[str, Any]) -> list[RenderableType]:
    fine = rank["integrity"] in ("ok", "not checked yet")
    about = Text(f"\n{rank['policy']}; keep ratio {rank['keep_ratio']:g}, floor {rank['floor']:.3f}; integrity: ")
    about.append(rank["integrity"], "green" if fine else "bold red")
    about.append(f", {rank['integrity_age_s']:.0f} s ago")
    parts = [about, _tiers(rank), _requests(rank)]
    if rank["profile_warning"]:
        parts.insert(1, Text(rank["profile_warning"], "yellow"))
    return parts


def _tiers(rank: dict[str, Any]) -> Table:
    table = Table("tier", "", "used", "of", "tokens", box=None, pad_edge=False)
    names = {
        "resident": "GPU: heads kept whole", "hot": "GPU: hot pages", "index": "GPU: key index",
        "host": "host: every other row",
    }  # fmt: skip
    for name, what in names.items():
        tier = rank["tiers"][name]
        if not tier["nbytes"]:
            continue
        share = tier["used"] / tier["total"] if tier["total"] else 0.0
        table.add_row(
            what,
            ProgressBar(1.0, share, width=24),
            size(share * tier["nbytes"]),
            size(tier["nbytes"]),
            f"{tier['used']:,} of {tier['total']:,}",
        )
    pages = rank["hot_page_states"]
    table.caption = (
        f"hot pages: {pages['used']:,} used, {pages['parked']:,} parked for a next turn, {pages['prefix']:,} with "
        f"cached beginnings, {pages['free']:,} free"
    )
    table.caption_justify = "left"
    return table


def _requests(rank: dict[str, Any]) -> RenderableType:
    listed = rank["running_requests"][:MOST]
    if not listed:
        return Text("nothing runs", "dim")
    table = Table("request", "tokens", "hot rows kept", "of", "", box=None, pad_edge=False)
    for one in listed:
        state = [] if not one["tokens"] else ["exact" if one["exact"] else "compressed"]
        state += ["reading its prompt"] * (one["tokens"] < one["prompt"]) + ["resumed"] * one["resumed"]
        share = f"{one['kept_rows'] / one['all_rows']:.1%}" if one["all_rows"] else "none yet"
        table.add_row(
            f"#{one['number']}",
            f"{max(one['tokens'], one['prompt']):,}",
            f"{one['kept_rows']:,}",
            share,
            ", ".join(state),
        )
    if more := rank["running"] - len(listed):
        table.caption = f"and {more} younger ones"
    return table
