"""The command `ringtmp trace`: where the time of a run went, from its trace."""

from typing import TYPE_CHECKING, Any

import click

from ringtmp.commands._output import new_file, writing
from ringtmp.config.click_command import Command, argument, option
from ringtmp.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.table import Table

HELP = """Say where the time of a run went, from its trace.

Prints the time of each rank by part, the bytes between the ranks, the most micro-batches that each rank held, and the
failures that the run recovered from. With --out every event goes to a file instead, for other programs."""
EXAMPLES = """
ringtmp trace runs/first
ringtmp trace runs/first --launch 0 --out events.csv
"""


@click.command("trace", cls=Command, help=HELP, short_help="Say where the time of a run went", examples=EXAMPLES)
@argument("run", help="run folder")
@option("--launch", type=int, help="launch of the run, from 0; default: the newest")
@option("--out", metavar="FILE.csv", help="write every event to this file; it must not exist")
def command(run: str, launch: int | None, out: str | None) -> None:
    from rich.console import Console

    from ringtmp.analysis.reader import open_run

    found = open_run(run, launch)
    if out is not None:
        _write(found.events(), out)
        return
    console = Console()
    breakdown = found.breakdown()
    shares = breakdown.div(breakdown["wall"], axis=0).drop(columns="wall").map(lambda share: f"{share:.1%}")
    shares.insert(0, "seconds", breakdown["wall"].map(lambda seconds: f"{seconds:,.2f}"))
    shares["in flight"] = found.peak_in_flight()
    console.print(_table(f"{run}, launch {found.launch}: time of each rank", "rank", shares))
    sent = found.communication()
    sent = sent.loc[:, (sent != 0).any()].map(lambda count: f"{count / 1e6:,.2f}" if count else "")
    if sent.size:
        sent.columns = [f"to {rank}" for rank in sent.columns]
        console.print(_table("megabytes from each rank", "rank", sent))
    lost = found.recoveries()
    if len(lost):
        console.print(_table("failures that the run recovered from", "", lost))


def _write(events: "DataFrame", out: str) -> None:
    if not out.endswith(".csv"):
        raise UserError(f"out: {out}: expected a name that ends in .csv")
    path = new_file(out)
    with writing(path):
        events.to_csv(path, index=False)
    click.echo(f"{len(events):,} events written to {out}")


def _table(title: str, index: str, frame: "DataFrame") -> "Table":
    """The data frame as a table with its index in the first column."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", header_style="bold")
    for name in (index, *map(str, frame.columns)):
        table.add_column(name, justify="right")
    for row in frame.itertuples():
        table.add_row(*(_shown(value) for value in row))
    return table


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
