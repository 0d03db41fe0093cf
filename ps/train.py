"""``mpirun -n 8 python -m ps.train``: train with parameter servers (rank 0 serves), or with an all-reduce."""

import sys
from typing import NoReturn

from ringtmp.run.command import Program, run_program

PROGRAM = Program(
    "ps.train",
    "Train a neural network with parameter servers: rank 0 holds the parameters, every other rank the whole network "
    "and a share of each batch. Gradients are pushed, new weights come back.",
    without="Ring",
    module="ringtmp.ps.trainer",
    trainer="ServerTrainer",
)


def run(words: list[str]) -> NoReturn:
    """Train as the command line `words` says, on every rank that a launcher has started, and exit."""
    run_program(PROGRAM, words)


if __name__ == "__main__":
    run(sys.argv[1:])
