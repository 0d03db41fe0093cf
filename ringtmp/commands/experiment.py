"""The command `ringtmp experiment`: measure one claim."""

import click

from ringtmp.config.click_command import Command, argument

HELP = """Measure one claim: real runs, a table, a figure.

Without NAME the experiments are listed; NAME --help lists the flags of one. `report` puts all results on one page."""
EXAMPLES = """
ringtmp experiment
ringtmp experiment optimum --quick
ringtmp experiment report --out results.html
"""


@click.command(
    "experiment",
    cls=Command,
    help=HELP,
    short_help="Measure one claim: real runs, a table, a figure",
    examples=EXAMPLES,
    launched="every rank",  # schedules trains on the ranks that mpirun has started
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True},
)
@argument("name", required=False, default="", help="name of the experiment")
@argument("flags", nargs=-1, type=click.UNPROCESSED, help="its flags")
def command(name: str, flags: tuple[str, ...]) -> int:
    from ringtmp.jobs.experiments.__main__ import main

    return main([name, *flags] if name else [])
