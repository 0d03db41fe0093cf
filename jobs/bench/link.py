"""How much of a link the engine uses: a stream of messages from rank 0 to rank 1, beside a bare Isend/Irecv loop.

Usage: make bench-link [ARGS="--rounds 25"], or mpirun -n 2 python -m ringtmp.jobs.bench.link. The engine's side is its
own `ReceiveQueue` and `SendRequests` (persistent requests, receives posted ahead), polled like in
`ringtmp.ring.chunk.Chunk.poll`; the bare side has the same number of messages in flight and nothing else to do. It
comes in two forms, windows that are waited for whole (as in the OSU benchmarks) and one that waits for its oldest
message only; the faster one is the peer.

Also: the same messages cut in pieces, and the remaining wait for an 8 MB message after a compute action, by the
number of polls in the middle of it.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ringtmp.comm.mpi import StopRequest, run_main
from ringtmp.comm.point_to_point import ReceiveQueue
from ringtmp.comm.waiting import Backoff
from ringtmp.errors import RunFailure, UserError
from ringtmp.jobs.lib.compare import compared, measured
from ringtmp.jobs.lib.launch import rounds
from ringtmp.jobs.lib.store import publish_benchmark
from ringtmp.nn.layer import Array, aligned
from ringtmp.nn.model import build_model
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.stage import Stage
from ringtmp.ring.links import SendRequests
from ringtmp.trace.recorder import clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Request

AIM = 0.9
SLOTS = 6  # messages in flight: what ready mode holds on two ranks at first, and two receives posted ahead
SIZES = {"4 KB": 4 << 10, "64 KB": 64 << 10, "1 MB": 1 << 20, "8 MB": 8 << 20}
PIECES = (2, 4, 8)
VOLUME = 256 << 20  # bytes of a measurement, of small messages at most MESSAGES
MESSAGES = 8192
TAG_STREAM, TAG_READ = 11, 12
PRODUCTS = 10  # of a compute action: 32 rows through 1024 x 1024, 0.7 ms each on Zen 4


class EngineLink:
    """Messages from rank 0 to rank 1, sent and received like in the engine. Collective over `comm`.

    Parameters
    ----------
    comm : Intracomm
        Two ranks.
    buffers : list of array
        A message for each slot.
    pieces : int
        Parts that a message is cut into, each with its own request.
    """

    def __init__(self, comm: "Intracomm", buffers: list[Array], pieces: int = 1) -> None:
        self.comm, self.pieces = comm, pieces
        self.parts = [np.array_split(buffer, pieces) for buffer in buffers]
        self.pending: list[list[Request]] = [[] for _ in buffers]
        self.sent = self.retired = self.taken = 0
        self.backoff = Backoff(crowded=False)
        if comm.rank == 0:
            self.outbox = SendRequests(comm, 1, TAG_STREAM, synchronous_sends=False)
        else:
            self.inbox = ReceiveQueue(comm, 0, TAG_STREAM, [part for parts in self.parts for part in parts])
            for slot in range(len(buffers)):
                self._post(slot)
        comm.Barrier()

    def _post(self, slot: int) -> None:
        for piece in range(self.pieces):
            self.inbox.post(slot * self.pieces + piece)

    def send(self) -> None:
        """Send the next message; its slot must be free."""
        slot = self.sent % len(self.parts)
        for piece, part in enumerate(self.parts[slot]):
            self.pending[slot].append(self.outbox.send((slot, piece), part))
        self.sent += 1

    def poll(self) -> None:
        """Free the slots of messages that have left; or take those that have arrived, and post their slots again."""
        slots = len(self.parts)
        if self.comm.rank:
            self.inbox.poll()
            while self.taken < self.inbox.arrived // self.pieces:
                self._post(self.taken % slots)
                self.taken += 1
            return
        while self.retired < self.sent:
            sends = self.pending[self.retired % slots]
            while sends and sends[-1].Test():
                sends.pop()
            if sends:
                return
            self.retired += 1

    def wait(self, retired: int, taken: int) -> None:
        """Poll, and back off like the engine, until `retired` messages have left rank 0 and rank 1 has `taken`."""
        self.poll()
        if self.retired < retired or self.taken < taken:
            self.backoff.reset()
            while self.retired < retired or self.taken < taken:
                self.backoff.pause()
                self.poll()

    def stream(self, count: int) -> None:
        """Rank 0 sends `count` messages, rank 1 takes them."""
        if self.comm.rank:
            until = self.taken + count
            while self.taken < until:
                self.wait(0, self.taken + 1)
            return
        for _ in range(count):
            self.wait(self.sent - len(self.parts) + 1, 0)
            self.send()
        self.wait(self.sent, 0)

    def close(self) -> None:
        """Free all requests."""
        if self.comm.rank:
            self.inbox.close()
        else:
            self.outbox.close()


def windows(comm: "Intracomm", buffers: list[Array], count: int) -> None:
    """Bare loop: send or receive `count` messages over `comm`, from all `buffers` at once, then Waitall."""
    from mpi4py.MPI import Request

    for first in range(0, count, len(buffers)):
        now = buffers[: count - first]
        if comm.rank == 0:
            Request.Waitall([comm.Isend(buffer, 1, TAG_STREAM) for buffer in now])
        else:
            Request.Waitall([comm.Irecv(buffer, 0, TAG_STREAM) for buffer in now])


def rolling(comm: "Intracomm", buffers: list[Array], count: int) -> None:
    """Bare loop: send or receive `count` messages over `comm`; wait for the oldest, and reuse its slot of `buffers`."""
    slots = len(buffers)
    begin = (
        partial(comm.Isend, dest=1, tag=TAG_STREAM) if comm.rank == 0 else partial(comm.Irecv, source=0, tag=TAG_STREAM)
    )
    requests = [begin(buffer) for buffer in buffers[:count]]
    for number in range(slots, count):
        slot = number % slots
        requests[slot].Wait()
        requests[slot] = begin(buffers[slot])
    for request in requests:
        request.Wait()


def by_turns(comm: "Intracomm", ways: dict[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """Call each way once a round, in every other round backwards. Collective over `comm`.

    Parameters
    ----------
    comm : Intracomm
        Two ranks.
    ways : dict of callable
        By name: returns a measurement.
    count : int
        Rounds that count; one more before them warms up.
    """

    def timed(some: list[Callable[[], float]]) -> list[float]:
        values = []
        for way in some:
            comm.Barrier()
            values.append(way())
        return values

    _, *found = [values for _, values in rounds(ways, count + 1, timed)]
    return {name: [values[name] for values in found] for name in ways}


def bandwidths(comm: "Intracomm", size: int, turns: int) -> dict[str, list[float]]:
    """GB/s of each way in `turns` rounds for messages of `size` bytes; on rank 0. Collective over `comm`."""
    buffers = [aligned(size // 4, np.float32) for _ in range(SLOTS)]
    for buffer in buffers:
        buffer[...] = 1 - comm.rank  # maps all pages; what rank 1 holds in the end shows that all has arrived
    count = max(SLOTS, min(MESSAGES, VOLUME // size))
    note = np.zeros(1)

    def timed(run: Callable[[], None]) -> float:
        began = clock()
        run()
        if comm.rank:  # the time ends when the last message has been read
            comm.Send(note, 0, TAG_READ)
        else:
            comm.Recv(note, 1, TAG_READ)
        return count * size / (clock() - began)

    ways: dict[str, Callable[[], float]] = {
        "windows": lambda: timed(lambda: windows(comm, buffers, count)),
        "rolling": lambda: timed(lambda: rolling(comm, buffers, count)),
    }
    links = []
    for pieces in (1, *PIECES):
        link = EngineLink(comm.Dup(), buffers, pieces)  # receives stay posted: each needs its own messages
        links.append(link)
        ways[f"engine in {pieces}"] = partial(timed, partial(link.stream, count))
    found = by_turns(comm, ways, turns)
    for link in links:
        link.close()
        link.comm.Free()
    if comm.rank and not all((buffer == 1).all() for buffer in buffers):
        raise RunFailure(f"messages of {size} bytes came wrong")
    return found


def stream_rows(comm: "Intracomm", count: int) -> list[dict[str, Any]]:
    """The engine's stream beside the bare loops, and in pieces beside whole, `count` times. Collective over `comm`."""
    whole, cut = [], []
    for name, size in SIZES.items():
        found = bandwidths(comm, size, count)
        if comm.rank:
            continue
        peer = max(("windows", "rolling"), key=lambda way: float(np.median(found[way])))
        whole.append(compared(f"{name}, beside bare {peer}", found["engine in 1"], found[peer], "GB/s", AIM))
        for pieces in PIECES:
            case = f"{name} in {pieces} pieces, beside whole"
            cut.append(compared(case, found[f"engine in {pieces}"], found["engine in 1"], "GB/s", None))
    return whole + cut


class Compute:
    """A compute action of several milliseconds that can poll in between."""

    def __init__(self) -> None:
        model = build_model("mlp:1024-1024x1-10", "auto", 1024, "classes", 10)
        self.stage = Stage(model, 0, 1, np.dtype(np.float32), Optimizer("sgd"), 32, 1)
        self.stage.initialise(0)
        self.stage.warm_up([32])
        self.work = self.stage.work(0, 32)

    def run(self, polls: int, poll: Callable[[], Any]) -> None:
        """Compute all products, with `polls` calls of `poll` evenly between them."""
        at = {round(PRODUCTS * (n + 1) / (polls + 1)) for n in range(polls)}
        for number in range(PRODUCTS):
            if number in at:
                poll()
            self.stage.forward(self.work)


def overlap_rows(comm: "Intracomm", count: int) -> list[dict[str, Any]]:
    """Cost of an 8 MB message beside a compute action on both ranks, in `count` rounds. Collective over `comm`."""
    compute, size = Compute(), SIZES["8 MB"]
    buffers = [aligned(size // 4, np.float32) for _ in range(2)]
    links = {pieces: EngineLink(comm.Dup(), buffers, pieces) for pieces in (1, 4)}
    left: dict[str, list[float]] = {}

    def trial(name: str, polls: int, pieces: int, computes: bool, sends: bool) -> float:
        """Milliseconds from the send to the end of all on both ranks; notes what was waited after the compute."""
        link = links[pieces]
        target = link.taken + sends
        began = clock()
        if comm.rank == 0 and sends:
            link.send()
        if computes:
            compute.run(polls, link.poll)
        since = clock()
        link.wait(link.sent, target if comm.rank else 0)
        ended = clock()
        waits, spans = comm.allgather((ended - since) / 1e6), comm.allgather((ended - began) / 1e6)
        left.setdefault(name, []).append(max(waits))
        return max(spans)

    cases = {"message alone": (0, 1, False, True), "compute alone": (0, 1, True, False)}
    for polls, pieces in ((0, 1), (1, 1), (4, 1), (0, 4), (4, 4)):
        how = f" in {pieces} pieces" if pieces > 1 else ""
        cases[f"8 MB{how} under compute, {polls} polls"] = (polls, pieces, True, True)
    ways: dict[str, Callable[[], float]] = {name: partial(trial, name, *case) for name, case in cases.items()}
    spans = by_turns(comm, ways, count)
    for link in links.values():
        link.close()
        link.comm.Free()
    rows = [measured(name, spans[name], "ms", None, True) for name in ("message alone", "compute alone")]
    for name in list(cases)[2:]:
        rows.append(measured(f"{name}: wait left", left[name][1:], "ms", None, True))
        beyond = np.subtract(spans[name], spans["compute alone"]).tolist()
        rows.append(measured(f"{name}: all longer than compute by", beyond, "ms", None, True))
    return rows


def main(comm: "Intracomm", count: int) -> int:
    """Measure all in `count` rounds and publish it; return the exit status. Collective over `comm`."""
    if comm.size != 2:
        raise UserError(f"bench-link: expected 2 ranks, got {comm.size}")
    rows = stream_rows(comm, count) + overlap_rows(comm, count)
    if comm.rank == 0:
        publish_benchmark("link", rows, "Use of a link between two ranks", peer="bare mpi4py Isend/Irecv", slots=SLOTS)
        cut = [row for row in rows if "pieces, beside whole" in row["case"] and row["low"] > 1]
        print("pieces are faster than whole for: " + ("; ".join(row["case"] for row in cut) or "no size"))
        cost = {row["case"]: row["ours"] for row in rows}
        for polls in (0, 1, 4):
            name = f"8 MB under compute, {polls} polls"
            wait, longer = cost[f"{name}: wait left"], cost[f"{name}: all longer than compute by"]
            print(f"{name}: {wait:.2f} ms are left to wait; all takes {longer:.2f} ms longer than compute alone")
    comm.Barrier()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each [15]")
    options = parser.parse_args()

    def start(comm: "Intracomm", stop: StopRequest) -> int:
        """Measure on the world."""
        return main(comm, options.rounds)

    run_main(start)
