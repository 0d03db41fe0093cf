"""``python -m ringtmp.evaluate runs/NAME``: loss and score of a trained network, on its own or other samples."""

import argparse
import sys
from typing import TYPE_CHECKING

from ringtmp.run.cli import Parser
from ringtmp.run.mpi import StopRequest, from_rank_0, run_main
from ringtmp.trained import Trained

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m ringtmp.evaluate", description=__doc__.split(": ")[1], allow_abbrev=False)
    parser.add_argument("checkpoint", help="run folder (its newest checkpoint), or runs/NAME/checkpoints/step-...")
    parser.add_argument("--data", default="", help="other data of the same kind, as training takes it [the run's own]")
    parser.add_argument("--split", choices=("test", "train"), default="test", help="samples to look at [test]")
    return parser.parse_args(argv)


def main(comm: "Intracomm", stop: StopRequest) -> int:
    """Evaluate on rank 0 and say it in a line; the exit status."""

    def told() -> str:
        try:
            options = _arguments(sys.argv[1:])
        except SystemExit:  # --help has been printed
            return ""
        net = Trained(options.checkpoint)
        found = net.evaluate(net.data(options.data), options.split)
        kind = f"accuracy {found.score:.2%}" if net.is_classes else f"R2 {found.score:.4f}"
        what = f"{options.data or net.info.name}, {found.samples:,} {options.split} samples"
        return f"{options.checkpoint}, step {net.step}, on {what}: loss {found.loss:.6g}, {kind}"

    text = from_rank_0(comm, told)
    if comm.rank == 0 and text:
        print(text)
    return 0


if __name__ == "__main__":
    run_main(main)
