"""The command `ringtmp top`."""

import time

import click

from ringtmp.config.click_command import Command, argument, option
from ringtmp.errors import UserError

HELP = """Show a run in the terminal, during the run and afterwards.

Shows the state of the run, each rank in its ring and its time by part, the throughput, and failures that the run
recovered from. It only reads files, so it may run on any host that sees the run folder. Ctrl-C ends it."""
EXAMPLES = "ringtmp top runs/first"


@click.command("top", cls=Command, help=HELP, short_help="Show a run in the terminal", examples=EXAMPLES)
@argument("run", help="run folder")
@option("--every", type=float, default=1.0, help="seconds between two updates")
@option("--once", is_flag=True, help="print the page once; the default if output is not a terminal")
def command(run: str, every: float, once: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    from ringtmp.analysis import open_run
    from ringtmp.analysis.live_view import View

    if not 0.1 <= every < float("inf"):
        raise UserError(f"every: expected at least 0.1 seconds, got {every}")
    view, console = View(run), Console()
    if once or not console.is_terminal:
        console.print(view.page())
        return
    with Live(view.page(), console=console, screen=False, auto_refresh=False) as live:
        while open_run(run).status["state"] == "running":
            time.sleep(every)
            live.update(view.page(), refresh=True)
