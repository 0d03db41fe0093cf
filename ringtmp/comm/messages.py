"""Typed control messages: a NamedTuple for each kind, packed and unpacked here alone, and a mailbox with handlers.

    class Stop(NamedTuple):
        \"\"\"Rank 0 -> all: the first step that is not made, and the signal that asked for the stop.\"\"\"
        step: int
        signal: int

    KINDS = MessageKinds(Stop, ...)
    mailbox.on(Stop, lambda sender, message: ...)
    mailbox.send(3, Stop(step=7, signal=15))

On the wire a message is float64 numbers: its kind, then its fields in order. Integers are exact up to 2^53.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, get_type_hints

from ringtmp.comm.point_to_point import CONTROL_FIELDS, ControlChannel
from ringtmp.trace.recorder import Recorder, clock

if TYPE_CHECKING:
    from mpi4py.MPI import Prequest

Packed = tuple[float, ...]
Handler = Callable[[int, Any], None]


class MessageKinds:
    """The kinds of messages that may arrive on one set of channels, numbered in the order given.

    Parameters
    ----------
    *kinds : NamedTuple classes
        Their fields are annotated int, float or bool; at most `CONTROL_FIELDS` - 1 of them.
    """

    def __init__(self, *kinds: type) -> None:
        self._numbers = {kind: float(number) for number, kind in enumerate(kinds)}
        self._kinds: list[tuple[Any, tuple[Callable[[float], Any], ...]]] = []
        for kind in kinds:
            converters = tuple(get_type_hints(kind).values())
            if len(converters) >= CONTROL_FIELDS or not set(converters) <= {int, float, bool}:
                raise TypeError(f"{kind.__name__}: expected at most {CONTROL_FIELDS - 1} fields of int, float or bool")
            self._kinds.append((kind, converters))

    def pack(self, message: Any) -> Packed:
        """The numbers that travel for `message`."""
        return (self._numbers[type(message)], *message)

    def unpack(self, packed: Packed) -> Any:
        """The message that `packed` holds; numbers behind its last field are ignored."""
        kind, converters = self._kinds[int(packed[0])]
        return kind(*(convert(number) for convert, number in zip(converters, packed[1:], strict=False)))


class Mailbox:
    """Sends and receives typed messages over control channels, and calls a handler for each that arrives.

    Parameters
    ----------
    rank : int
        This rank. Messages to itself are delivered by the next `poll`, without MPI.
    kinds : MessageKinds
    channels : dict of int to ControlChannel
        By the rank to which a channel sends.
    recorder : Recorder
        Gets a "send" event for each message.
    """

    def __init__(self, rank: int, kinds: MessageKinds, channels: dict[int, ControlChannel], recorder: Recorder) -> None:
        self.rank, self.kinds, self.channels, self.recorder = rank, kinds, channels, recorder
        self._to_self: deque[Any] = deque()
        self._handlers: dict[type, list[Handler]] = {}

    def on(self, kind: type, handler: Handler) -> None:
        """Call `handler(sender, message)` for each message of `kind`, after handlers registered before it."""
        self._handlers.setdefault(kind, []).append(handler)

    def send(self, peer: int, message: Any, step: int = -1) -> None:
        """Send `message` to rank `peer`, after those sent before; `step` is noted in the trace.

        A message to a rank without a channel is dropped.
        """
        if peer == self.rank:
            self._to_self.append(message)
        elif peer in self.channels:
            begin = clock()
            self.channels[peer].send(self.kinds.pack(message))
            self.recorder.record("send", begin, clock(), step, -1, peer, CONTROL_FIELDS * 8)

    def send_all(self, peers: Iterable[int], message: Any, step: int = -1) -> None:
        """Send `message` to each of `peers`."""
        for peer in peers:
            self.send(peer, message, step)

    def poll(self) -> bool:
        """Deliver every message that has arrived; True if there was one."""
        arrived = False
        for channel in tuple(self.channels.values()):
            for packed in channel.poll():
                self._deliver(channel.source, self.kinds.unpack(packed))
                arrived = True
        while self._to_self:
            self._deliver(self.rank, self._to_self.popleft())
            arrived = True
        return arrived

    def _deliver(self, sender: int, message: Any) -> None:
        for handler in self._handlers.get(type(message), ()):
            handler(sender, message)

    def idle(self) -> bool:
        """Whether every message sent has left."""
        return all(channel.idle() for channel in self.channels.values())

    def requests(self) -> "list[Prequest]":
        """All persistent requests of the channels."""
        return [request for channel in self.channels.values() for request in channel.requests()]

    def close(self) -> None:
        """Free all channels; call when `idle`, and after the last message to this rank."""
        for channel in self.channels.values():
            channel.close()
