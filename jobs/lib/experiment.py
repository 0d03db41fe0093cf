"""What an experiment is, its registration, and its command line.

An experiment is one file: its question (the module's docstring), and a class with its rows, tables, figure and claims.

    @experiment
    class Efficiency(Experiment):
        name, about, order = "efficiency", "how long workers compute, transfer and wait", 10

        def measure(self, options, table, save): ...
        def show(self, table, page): ...

`ringtmp experiment NAME` finds it by importing every module of `ringtmp.jobs.experiments`.
"""

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from ringtmp.jobs.lib.page import Page
from ringtmp.jobs.lib.store import places, plain, publish, read, write

Table = dict[str, Any]


class Claim(NamedTuple):
    """A row of the table of claims (`jobs.experiments.report`, and the page of results in the documentation).

    Attributes
    ----------
    ring, others : str
        Result of the ring, and results of the other ways.
    how : str
        How the numbers were obtained: measured, on emulated nodes, simulated.
    again : str
        Command that repeats the measurement, after `ringtmp experiment`.
    """

    ring: str
    others: str
    how: str
    again: str


class Experiment:
    """One question, the rows that answer it, their tables, a figure, and the claims that follow.

    Attributes
    ----------
    name : str
        Name of the command, the result file and the figure.
    about : str
        Subject, in one line.
    order : int
        Its place among all experiments in the list and in the report; ascending.
    width : int
        Columns of the page on which its tables are shown.
    pictured : bool
        Whether it has a figure.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    order: ClassVar[int] = 1000
    width: ClassVar[int] = 120
    pictured: ClassVar[bool] = True

    def flags(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags of this experiment to `parser`, which has those that all share."""

    def keeps(self, options: argparse.Namespace) -> bool:
        """Whether results are written with these `options`: into --out, or into the project if they are not quick."""
        return bool(options.out) or not options.quick

    def measure(self, options: argparse.Namespace, table: Table, save: Callable[[], None]) -> None:
        """Measure.

        Parameters
        ----------
        options : Namespace
            The command line.
        table : dict
            Contents of the result file so far (empty if it does not exist); the new rows are added to it.
        save : callable
            Writes the table; to be called after each part of a long measurement.
        """
        raise NotImplementedError

    def show(self, table: Table, page: Page) -> None:
        """Print the tables of a result file's contents `table` on `page`."""
        raise NotImplementedError

    def draw(self, table: Table, path: Path) -> None:
        """Draw the figure of a result file's contents `table` into the file `path`."""
        raise NotImplementedError

    def claims(self, table: Table) -> list[Claim]:
        """Claims that a result file's contents `table` support."""
        return []

    @property
    def question(self) -> str:
        """The docstring of its module."""
        return (sys.modules[type(self).__module__].__doc__ or "").strip()

    def parser(self) -> argparse.ArgumentParser:
        """A command line that shows its question."""
        return argparse.ArgumentParser(
            prog=f"ringtmp experiment {self.name}",
            description=self.question,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def main(self, words: Sequence[str]) -> int:
        """Measure, show and publish, as the command line `words` says; return the exit status."""
        parser = self.parser()
        parser.add_argument("--quick", action="store_true", help="few and short runs; written to --out alone")
        parser.add_argument("--redraw", action="store_true", help="measure nothing: tables and figure of a result file")
        parser.add_argument("--out", help=f"folder for {self.name}.h5, .md and .png, instead of those of the project")
        self.flags(parser)
        options = parser.parse_args(words)
        options.error = parser.error
        keeps = self.keeps(options) or options.redraw
        result, _ = places(self.name, options.out)
        table = read(result) if keeps and result.exists() else {}
        if not options.redraw:
            self.measure(options, table, lambda: write(table, result) if keeps else None)
        elif not table:
            parser.error(f"no results in {result}")
        shown, page = plain(table), Page(self.width)
        self.show(shown, page)
        if keeps:
            publish(self.name, options.out, shown, page, self.draw if self.pictured else None)
        return 0


EXPERIMENTS: dict[str, Experiment] = {}  # all that have registered, by name

Kind = TypeVar("Kind", bound=type[Experiment])


def experiment(kind: Kind) -> Kind:
    """Register the class `kind` of experiments. Raises `ValueError` if another class has its name."""
    known = EXPERIMENTS.get(kind.name)
    if known and type(known).__qualname__ != kind.__qualname__:
        raise ValueError(f"two experiments have the name {kind.name!r}")
    EXPERIMENTS[kind.name] = kind()
    return kind


def find_experiments(package: str = "ringtmp.jobs.experiments") -> dict[str, Experiment]:
    """Import all modules of the package named `package`; all registered experiments by name, in their order."""
    here = importlib.import_module(package)
    for found in pkgutil.walk_packages(here.__path__, f"{package}."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    return dict(sorted(EXPERIMENTS.items(), key=lambda item: (item[1].order, item[0])))
