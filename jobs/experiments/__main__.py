"""Experiments: one command for each claim, ending in a picture and a table.

Usage: ringtmp experiment NAME [--quick] [...]; NAME --help lists the flags of each.

"""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ringtmp.jobs.lib.experiment import find_experiments


def main(words: Sequence[str]) -> int:
    """Run the experiment that the first of `words` names with the flags that follow; the exit status."""
    experiments = find_experiments()
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        table = Table(box=None, show_header=False)
        for each in experiments.values():
            table.add_row(each.name, each.about)
        print(f"{(__doc__ or '').rstrip()}\n")
        Console(width=120).print(table)
        return 0
    if name not in experiments:
        print(f"ringtmp: experiments: no experiment {name!r}; expected {', '.join(experiments)}", file=sys.stderr)
        return 2
    return experiments[name].main(words[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
