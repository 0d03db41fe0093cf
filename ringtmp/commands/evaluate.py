"""``python -m ringtmp evaluate runs/NAME``: loss and score of a trained network, on its own or other samples."""

import sys
from typing import TYPE_CHECKING

from ringtmp.comm.mpi import StopRequest, run_main, tell_from_rank_0
from ringtmp.config.command_line import checkpoint_parser
from ringtmp.run.inference import TrainedNetwork

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def main(comm: "Intracomm", stop: StopRequest) -> int:
    """Evaluate on rank 0 of `comm` and print one line; return the exit status. `stop` is not used."""

    def report() -> str:
        parser = checkpoint_parser("ringtmp evaluate", __doc__.split(": ")[1])
        parser.add_argument(
            "--data",
            default="",
            help="other data of the same kind, in the form that --data of training takes [the run's own]",
        )
        parser.add_argument("--split", choices=("test", "train"), default="test", help="samples to evaluate [test]")
        options = parser.parse_args(sys.argv[1:])
        net = TrainedNetwork(options.checkpoint)
        found = net.evaluate(net.data(options.data), options.split)
        kind = f"accuracy {found.score:.2%}" if net.is_classes else f"R2 {found.score:.4f}"
        what = f"{options.data or net.info.name}, {found.samples:,} {options.split} samples"
        return f"{options.checkpoint}, step {net.step}, on {what}: loss {found.loss:.6g}, {kind}"

    return tell_from_rank_0(comm, report)


if __name__ == "__main__":
    run_main(main)
