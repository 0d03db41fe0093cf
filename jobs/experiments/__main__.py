"""Experiments: one command for each claim, ending in a picture and a table.

Usage: python -m jobs.experiments NAME [--quick] [...]; NAME --help says what each takes.

"""

import runpy
import sys

from rich.console import Console
from rich.table import Table

# Module and what it shows, by name, in the order in which a report has them.
EXPERIMENTS = {
    "efficiency": ("efficiency", "how long workers compute, transfer and wait: ring, every server mode, all-reduce"),
    "progress": ("progress", "loss per iteration, per sample and per second, each way tuned, several seeds"),
    "scalability": ("scalability", "speed-up on more and more nodes: rings, rings side by side, all-reduce, servers"),
    "architectures": ("architectures", "the same far beyond one machine, up to 4096 nodes (simulated)"),
    "resilience": ("survive", "recovery by phase, throughput after a loss, efficiency under failures, outcomes"),
    "capacity": ("capacity", "the largest network where each node's memory is limited; --billion"),
    "balance": ("balance", "work in proportion on unequal and changing nodes"),
    "cluster": ("cluster", "hosts with limited links: a step and how busy links are, beside the simulator"),
    "crossover": ("crossover", "where the server wins, and why: predicted and measured over links"),
    "limits": ("limits", "what the local rule finds by itself beside the best fixed limits (simulated)"),
    "optimum": ("optimum", "how far each schedule is from the true optimum of tiny rings"),
    "schedules": ("schedules", "one picture of a step under each schedule (under mpirun)"),
    "report": ("report", "all of them on one page"),
}


def main() -> int:
    """Run the experiment that is named; the exit status."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        table = Table(box=None, show_header=False)
        for each, (_, what) in EXPERIMENTS.items():
            table.add_row(each, what)
        print(__doc__.rstrip() + "\n")
        Console(width=120).print(table)
        return 0
    if name not in EXPERIMENTS:
        print(f"ringtmp: experiments: no experiment {name!r}; expected {', '.join(EXPERIMENTS)}", file=sys.stderr)
        return 2
    module = EXPERIMENTS[name][0]
    sys.argv[:2] = [f"python -m jobs.experiments {name}"]
    runpy.run_module(f"jobs.experiments.{module}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
