"""The command `ringtmp train`."""

from ringtmp.commands._ranks import RankCommand

HELP = (
    "Train a network whose layers are spread over the ranks of a ring: starts the ranks, and prints the line it used."
)
EXAMPLES = """
ringtmp train -n 8                                                digits, on 8 ranks
ringtmp train -n 3 --data digits --model mlp:64-256x10-10 --epochs 10
ringtmp train -n 2 --config run.toml --lr 1e-3                    flags override the file
ringtmp train -n 5 --resume runs/first --epochs 80                continue, on any number of ranks
mpirun -n 8 python -m ringtmp.train                               the same with your own launcher
"""


command = RankCommand("train", "ringtmp.train", HELP, "Server", EXAMPLES)
