"""An experiment from outside of `jobs`: one file, its question and its rows.

How often does each side of a coin come up?
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from ringtmp.jobs.lib.experiment import Claim, Experiment, Table, experiment
from ringtmp.jobs.lib.page import Page, make_table
from ringtmp.jobs.lib.plot import figure, frame
from ringtmp.jobs.lib.provenance import provenance


@experiment
class Coin(Experiment):
    """Both sides of a coin."""

    name, about = "coin", "how often each side of a coin comes up"

    def measure(self, options: argparse.Namespace, table: Table, save: Callable[[], None]) -> None:
        """Two rows."""
        throws = 10 if options.quick else 1000
        table["rows"] = [{"side": side, "share": 0.5, "throws": throws} for side in ("heads", "tails")]
        table["provenance"] = provenance()
        save()

    def show(self, table: Table, page: Page) -> None:
        """A line for each side."""
        shown = make_table("Two sides", ("side", "share"), ("side",))
        for row in table["rows"]:
            shown.add_row(row["side"], f"{row['share']:.0%}")
        page.print(shown)

    def draw(self, table: Table, path: Path) -> None:
        """A bar for each side."""
        with figure(path, figsize=(4, 3)) as (_, axes):
            axes[0, 0].bar([row["side"] for row in table["rows"]], [row["share"] for row in table["rows"]])
            frame(axes[0, 0])

    def claims(self, table: Table) -> list[Claim]:
        """One claim."""
        return [Claim("a coin lands on heads half of the time", "dice do not", "by hand", self.name)]
