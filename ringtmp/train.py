"""``mpirun -n 8 python -m ringtmp.train``: train a network whose layers are divided over the ranks of a ring."""

import sys
from typing import NoReturn

from ringtmp.run.command import Program, run_program

PROGRAM = Program(
    "ringtmp.train",
    "Train a neural network whose layers are distributed over the ranks of a ring. Micro-batches travel round as "
    "activations, their gradients travel back, and each rank updates its own layers.",
    without="Server",
    module="ringtmp.ring.trainer",
    trainer="RingTrainer",
)


def run(words: list[str]) -> NoReturn:
    """Train as the command line `words` says, on every rank that a launcher has started, and exit."""
    run_program(PROGRAM, words)


if __name__ == "__main__":
    run(sys.argv[1:])
