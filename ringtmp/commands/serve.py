"""The command `ringtmp serve`."""

from ringtmp.commands._ranks import RankCommand

HELP = "Train with parameter servers or an all-reduce, to compare with the ring: rank 0 serves, the others work."
EXAMPLES = """
ringtmp serve -n 4 --consistency ssp --staleness 2 --epochs 2 --name served
ringtmp serve -n 3 --colocate on --epochs 3                       every rank serves a part and works
ringtmp serve -n 4 --consistency allreduce                        no server
ringtmp train -n 2 --resume runs/served --epochs 4                the ring continues the server's run
"""


command = RankCommand("serve", "ringtmp.ps.train", HELP, "Ring", EXAMPLES)
