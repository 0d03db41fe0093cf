"""Small messages between ranks beside gradients and weights: what is begun, done, lost, and when to stop.

Every worker talks to every server, every server to rank 0. What a rank tells itself takes the same way without MPI.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ringtmp.comm.point_to_point import CONTROL_FIELDS, ControlChannel
from ringtmp.trace.recorder import Recorder, clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

# First number of a message; the others in order.
BEGIN = 0  # worker -> servers: step, samples (0: it only asks for weights), generation; of its next push of all ranges
DONE = 1  # worker -> rank 0: step, loss sum, correct, samples, nanoseconds waited, nanoseconds gone
TEST = 2  # worker -> rank 0: step, loss sum, correct, samples
ALIVE = 3  # worker -> servers: nothing; a worker that computes for long is not silent
LEAVE = 4  # worker -> servers: it takes no part any more
END = 5  # worker -> servers: it has its last weights
STOP = 6  # rank 0 -> all: first step that is not made, signal
DROP = 7  # rank 0 -> all: worker, first step in which the others have its share, how it was lost (below)
SKIP = 8  # server -> worker: the step that is being made (backup workers)
SAVED = 9  # server -> rank 0: step, whether its part of a set is written, seconds for which it was held up
OVER = 10  # rank 0 -> all: every worker has ended
ASK = 11  # any rank -> rank 0: a signal has come that asks for a stop
SET = 12  # rank 0 -> all: the step after which a set is to be written
BACK = 13  # worker -> rank 0: it has been dropped, is there, and has pushed so many times
JOIN = 14  # rank 0 -> all: worker, first step in which it has a share again, its pushes so far, generation
HELD = 15  # server -> servers: a version that is durable, the step that all ranges have passed
CLEAR = 16  # rank 0 -> all: what the nodes remember of launches before this one is not needed any more

FAILED, SILENT, KILLED = range(3)  # how a worker was lost: its process is there, does not answer, is gone

Message = tuple[float, ...]


class Post:
    """This rank's links, and who heeds what comes.

    Parameters
    ----------
    comm : Intracomm
    peers : iterable of int
        Ranks that this one has links with, which have one with it.
    recorder : Recorder
    """

    def __init__(self, comm: "Intracomm", peers: Iterable[int], recorder: Recorder) -> None:
        self.rank, self.recorder = comm.rank, recorder
        self.links = {peer: ControlChannel(comm, peer, peer) for peer in peers if peer != comm.rank}
        self.silent: set[int] = set()  # they do not answer; what is sent to them may arrive one day
        self._gone: list[ControlChannel] = []  # kept, since MPI may still write to its buffers
        self.own: deque[Message] = deque()
        self.heeds: dict[int, list[Callable[[int, Message], None]]] = {}

    def on(self, kind: int, heed: Callable[[int, Message], None]) -> None:
        """Call `heed(sender, message)` for messages of a kind, after those who asked before."""
        self.heeds.setdefault(kind, []).append(heed)

    def send(self, peer: int, kind: int, *numbers: float) -> None:
        """Send a message; to this rank itself: with the next `poll`."""
        if peer == self.rank:
            self.own.append((kind, *numbers))
        elif peer in self.links:
            begin = clock()
            self.links[peer].send((kind, *numbers))
            step = int(numbers[0]) if numbers else -1
            self.recorder.record("send", begin, clock(), step, -1, peer, CONTROL_FIELDS * 8)

    def tell(self, peers: Iterable[int], kind: int, *numbers: float) -> None:
        """The same to several."""
        for peer in peers:
            self.send(peer, kind, *numbers)

    def poll(self) -> bool:
        """Heed what has come; whether there was anything."""
        came = False
        for peer, link in tuple(self.links.items()):
            for message in link.poll():
                self._heed(peer, message)
                came = True
        while self.own:
            self._heed(self.rank, self.own.popleft())
            came = True
        return came

    def _heed(self, peer: int, message: Message) -> None:
        for heed in self.heeds.get(int(message[0]), ()):
            heed(peer, message)

    def cut(self, peer: int) -> None:
        """Say no more to a rank that is gone, and hear no more of it."""
        if peer in self.links:
            self._gone.append(self.links.pop(peer))

    def idle(self) -> bool:
        """Whether all that was sent has left, but for what goes to those who do not answer."""
        return all(link.idle() for peer, link in self.links.items() if peer not in self.silent)

    def close(self) -> None:
        """Free all links; when `idle`, and nothing is on its way to this rank."""
        for link in self.links.values():
            link.close()
