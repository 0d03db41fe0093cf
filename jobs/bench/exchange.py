"""Push and pull beside a bare Isend / Irecv loop of the same bytes between the same ranks.

Usage: mpirun -n 2 python -m ringtmp.jobs.bench.exchange [--rounds 9]. Rank 0 serves, the others push and pull; nothing
computes but the server, which updates (SGD). The bare loop sends the same ranges as new requests and echoes each as
soon as it has arrived; it neither adds nor updates. By turns; a round moves all parameters there and back several
times.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
from mpi4py import MPI

from ringtmp.comm.waiting import Backoff
from ringtmp.jobs.lib.compare import compared
from ringtmp.jobs.lib.store import publish_benchmark
from ringtmp.kernels.compilation import prepare_kernels
from ringtmp.nn.model import build_model
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.shards import key_ranges
from ringtmp.nn.stage import Stage
from ringtmp.ps.compression import Compressor
from ringtmp.ps.consistency import Consistency
from ringtmp.ps.exchange import KeyRangeViews, ServerExchange
from ringtmp.ps.messages import make_mailbox
from ringtmp.ps.serving.served_range import make_served_ranges
from ringtmp.ps.serving.server import Server
from ringtmp.ps.serving.updates import Updater
from ringtmp.trace.recorder import Recorder

AIM = 0.8
CASES = {"8 layers of 1024, 32 MiB": "mlp:1024-1024x8", "8 layers of 256, 2 MiB": "mlp:256-256x8"}


class Ours:
    """A server on rank 0 and workers on the others, exchanging without computing.

    Parameters
    ----------
    comm : Intracomm
        At least 2 ranks.
    model : str
        Network whose parameters are exchanged.
    message_size : int
        Most bytes of a key range.
    """

    def __init__(self, comm: MPI.Intracomm, model: str, message_size: int) -> None:
        width = int(model.split("-")[-1].split("x")[0])
        built = build_model(model, "auto", (width,), "classes", width)
        dtype, plain = np.dtype(np.float32), Optimizer("sgd")
        self.ranges = key_ranges([layer.count for layer in built.layers], message_size // 4, 1)
        recorder, workers, compressor = Recorder(None, {}), range(1, comm.size), Compressor(dtype)
        self.mailbox = make_mailbox(comm, workers if comm.rank == 0 else [0], recorder)
        self.backoff = Backoff(False)
        self.steps, self.layers = 0, range(len(built.layers))
        self.server = self.link = None
        if comm.rank == 0:
            rule, served = Consistency(0), make_served_ranges(self.ranges, workers, plain, dtype, 0)
            updater = Updater(
                workers, rule, plain, compressor, recorder, rate=lambda step: 1e-6, batch_size=len(workers)
            )
            self.server = Server(comm, served, workers, rule, updater, compressor, self.mailbox, recorder)
        else:
            stage = Stage(built, 0, len(built.layers), dtype, plain, 1, 1)
            views = KeyRangeViews(self.ranges, stage.states)
            self.link = ServerExchange(comm, views, compressor, self.mailbox, recorder, None)

    def run(self, times: int) -> None:
        """Send all parameters there and back, `times` times."""
        for _ in range(times):
            self.backoff.reset()
            if self.link:
                self.link.begin(self.steps, 1)
                for layer in reversed(self.layers):
                    self.link.ready(layer)
                while any(self.link.missing(layer) >= 0 for layer in self.layers):
                    self.mailbox.poll()
                    if not self.link.poll():
                        self.backoff.pause()
            self.steps += 1
        if self.server:
            while any(served.version < self.steps for served in self.server.ranges) or not self.server.answers.idle():
                self.mailbox.poll()
                if not self.server.poll():
                    self.backoff.pause()


class Bare:
    """The same ranges there and back with nothing but Isend, Irecv and Waitany.

    Parameters
    ----------
    comm : Intracomm
        At least 2 ranks.
    sizes : list of int
        Numbers of each range.
    """

    def __init__(self, comm: MPI.Intracomm, sizes: list[int]) -> None:
        self.comm = comm
        peers = range(1, comm.size) if comm.rank == 0 else [0]
        self.incoming = {peer: [np.zeros(size, np.float32) for size in sizes] for peer in peers}
        self.outgoing = [np.zeros(size, np.float32) for size in sizes]

    def run(self, times: int) -> None:
        """Send all ranges there and back, `times` times."""
        comm, count = self.comm, len(self.outgoing)
        for _ in range(times):
            if comm.rank:
                receives = [comm.Irecv(buffer, 0, n) for n, buffer in enumerate(self.incoming[0])]
                sends = [comm.Isend(buffer, 0, n) for n, buffer in enumerate(self.outgoing)]
                MPI.Request.Waitall(sends + receives)
                continue
            peers = list(self.incoming)
            receives = [comm.Irecv(buffer, peer, n) for peer in peers for n, buffer in enumerate(self.incoming[peer])]
            sends = []
            for _ in receives:
                at = MPI.Request.Waitany(receives)
                sends.append(comm.Isend(self.outgoing[at % count], peers[at // count], at % count))
            MPI.Request.Waitall(sends)


def main() -> None:
    """Measure and publish. Collective over the world."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=9, help="pairs of runs of each case [9]")
    arguments.add_argument("--message-size", type=int, default=1 << 20, help="bytes of a range [1048576]")
    options = arguments.parse_args()
    world = MPI.COMM_WORLD
    prepare_kernels(np.float32, {"base", "serve"})
    rows = []
    for name, model in CASES.items():
        ours = Ours(world.Dup(), model, options.message_size)
        bare = Bare(world.Dup(), [keys.size for keys in ours.ranges])
        moved = 2 * 4 * sum(keys.size for keys in ours.ranges) * (world.size - 1)
        times = max(3, int(4e8 / moved))

        def rate(what: Callable[[int], None], times: int = times, moved: int = moved) -> float:
            world.Barrier()
            began = time.perf_counter()
            what(times)
            world.Barrier()
            return times * moved / (time.perf_counter() - began) / 1e9

        values: dict[str, list[float]] = {"ours": [], "bare": []}
        for round_number in range(options.rounds + 1):
            for who in ("ours", "bare") if round_number % 2 else ("bare", "ours"):
                value = rate(ours.run if who == "ours" else bare.run)
                if round_number:
                    values[who].append(value)
        workers = f"{world.size - 1} worker{'s' * (world.size > 2)}"
        rows.append(compared(f"{name}, {workers}", values["ours"], values["bare"], "GB/s", AIM))
    if world.rank == 0:
        library = MPI.Get_library_version().split("\n")[0]
        title = "Push and pull beside bare Isend and Irecv"
        publish_benchmark("exchange", rows, title, peer="Isend, Irecv, Waitany", mpi=library, ranks=world.size)


if __name__ == "__main__":
    main()
