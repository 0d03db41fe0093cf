"""The table at the end: where the time of each rank went."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

_LEFT_OUT = ("parameters", "memory", "checkpoint", "shown")  # columns to leave out where there is no room, in order


def workers(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of the ranks that train, those that only serve left out."""
    return [row for row in rows if row.get("role") != "server"]


def split_by_cores(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the time of all ranks is known by `CORE_PARTS`; otherwise by `PARTS` only."""
    return all(row.get("given_cores") is not None for row in rows)


def seconds(row: Mapping[str, Any], split: bool) -> dict[str, float]:
    """Seconds of a rank by `CORE_PARTS` if `split`, else by `PARTS`."""
    return row["given_cores"] if split else {part: value / 1e9 for part, value in row["parts"].items()}


def mean_shares(rows: Sequence[Mapping[str, Any]], split: bool) -> dict[str, float]:
    """Share of each part in the time of all ranks of `rows` together; empty without time. `split` as in `seconds`."""
    total: dict[str, float] = {}
    for row in rows:
        for part, value in seconds(row, split).items():
            total[part] = total.get(part, 0.0) + value
    whole = sum(total.values())
    return {part: value / whole for part, value in total.items()} if whole > 0 else {}


class _Column(NamedTuple):
    """A column: its name, heading, and cells in the order of the lines."""

    name: str
    heading: str
    cells: list[str]

    @property
    def width(self) -> int:
        """Characters that it takes, its border included."""
        return max(len(text) for text in [*self.heading.split("\n"), *self.cells]) + 3


def time_table(rows: Sequence[Mapping[str, Any]], heading: str, ring: bool, width: int) -> Table:
    """Make the table of ranks: those that train, their mean, and the servers.

    Parameters
    ----------
    rows : sequence of mapping
        One for each rank: `rank`, `shown` (its part of the work), `parameters`, `parts` (nanoseconds by part of the
        wall time), `given_cores` (seconds by `CORE_PARTS`, or None), `memory` (bytes), and with servers `role`.
    heading : str
        Heading of the column that shows `shown`.
    ring : bool
        Whether ranks wait for neighbours.
    width : int
        Characters that the table may take. Columns are left out if need be; checkpoints then count as other.
    """
    # Put the ranks that train first, then their mean, then the servers and theirs.
    working = workers(rows)
    serving = [row for row in rows if row not in working]
    lines: list[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]] = []
    for group, name in ((working, "workers" if serving else "all"), (serving, "servers")):
        lines += [(row, [row]) for row in group]
        if len(group) > 1:
            most = max(row["memory"] for row in group)
            whole = {"rank": name, "shown": "", "parameters": sum(row["parameters"] for row in group), "memory": most}
            lines.append((whole | {"mean": True}, group))

    # Leave columns out until the others fit.
    columns = _columns(lines, heading, ring, rows, merged=False)
    for name in _LEFT_OUT:
        if sum(column.width for column in columns) < width:
            break
        left = {column.name for column in columns} - {name}
        merged = "checkpoint" not in left
        columns = [each for each in _columns(lines, heading, ring, rows, merged=merged) if each.name in left]

    # Draw it.
    table = Table(header_style="bold")
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for number, (line, _) in enumerate(lines):
        last = "mean" in line or (number + 1 < len(lines) and "mean" in lines[number + 1][0])
        style = "bold" if "mean" in line else None
        table.add_row(*(column.cells[number] for column in columns), style=style, end_section=last)
    return table


def _columns(
    lines: Sequence[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]],
    heading: str,
    ring: bool,
    rows: Sequence[Mapping[str, Any]],
    *,
    merged: bool,
) -> list[_Column]:
    """All columns of the table; `merged`: checkpoints count as other."""
    split = split_by_cores(rows)
    others = "wait for\nneighbour" if ring else "wait for\nothers"
    waits = {"neighbour": others, "core": "wait for\na core"} if split else {"wait": "wait"}
    parts = {"compute": "compute", "transfer": "transfer", **waits, "checkpoint": "checkpoint", "other": "other"}
    shares = [mean_shares(group, split) or dict.fromkeys(parts, 0.0) for _, group in lines]
    if merged:
        shares = [share | {"other": share["other"] + share["checkpoint"]} for share in shares]
    facts = [line for line, _ in lines]
    return [
        _Column("rank", "rank", [str(fact["rank"]) for fact in facts]),
        _Column("shown", heading, [fact["shown"] for fact in facts]),
        _Column("parameters", "parameters", [f"{fact['parameters']:,}" for fact in facts]),
        *(_Column(part, head, [f"{share[part]:.1%}" for share in shares]) for part, head in parts.items()),
        _Column("memory", "peak memory", [f"{fact['memory'] / 2**20:,.0f} MiB" for fact in facts]),
    ]
