"""Typed control messages: one NamedTuple a kind, packed and unpacked here alone, and a mailbox with handlers.

    class Stop(NamedTuple):
        \"\"\"Rank 0 -> all: index of the first phase that is left out, and the signal that asked for it.\"\"\"

        index: int
        signal: int

    KINDS = MessageKinds(Stop, ...)
    mailbox = Mailbox(rank, KINDS, {3: channel}, recorder)
    mailbox.on(Stop, lambda sender, message: ...)
    mailbox.send(3, Stop(index=7, signal=15))

On the wire a message is float64 numbers: its kind, then its fields in order. Integers are exact up to 2^53.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, get_type_hints

from ringtmp.comm.point_to_point import CONTROL_FIELDS, ControlChannel
from ringtmp.trace.recorder import Recorder, clock

if TYPE_CHECKING:
    from mpi4py.MPI import Prequest

Packed = tuple[float, ...]
Handler = Callable[[int, Any], None]  # sender, message


class MessageKinds:
    """The kinds of messages that may arrive on one set of channels, numbered in the order given.

    Parameters
    ----------
    *kinds : NamedTuple classes
        Their fields are annotated int, float or bool; at most `CONTROL_FIELDS` - 1 of them. Both ends of a channel
        must be given the same kinds in the same order.

    Raises
    ------
    TypeError
        A kind is no NamedTuple, is given twice, has too many fields, or a field of another type.
    """

    def __init__(self, *kinds: type) -> None:
        self._numbers: dict[type, float] = {}
        self._kinds: list[tuple[Any, tuple[Callable[[float], Any], ...]]] = []
        for number, kind in enumerate(kinds):
            name = kind.__name__
            if not issubclass(kind, tuple) or not hasattr(kind, "_fields"):
                raise TypeError(f"{name}: expected a NamedTuple")
            if kind in self._numbers:
                raise TypeError(f"{name}: given twice")
            types = get_type_hints(kind)
            converters = tuple(types[field] for field in kind._fields)
            if len(converters) >= CONTROL_FIELDS or not set(converters) <= {int, float, bool}:
                raise TypeError(f"{name}: expected at most {CONTROL_FIELDS - 1} fields of int, float or bool")
            self._numbers[kind] = float(number)
            self._kinds.append((kind, converters))

    def __contains__(self, kind: type) -> bool:
        return kind in self._numbers

    def pack(self, message: Any) -> Packed:
        """The numbers that travel for `message`. Raises `TypeError` if its type is none of the kinds."""
        number = self._numbers.get(type(message))
        if number is None:
            raise TypeError(f"{type(message).__name__} is not among these kinds of messages")
        return (number, *message)

    def unpack(self, packed: Packed) -> Any:
        """The message that `packed` holds; numbers behind its last field are ignored."""
        kind, converters = self._kinds[int(packed[0])]
        return kind(*(convert(number) for convert, number in zip(converters, packed[1:], strict=False)))


class Mailbox:
    """Sends and receives typed messages over control channels, and calls a handler for each that arrives.

    Messages between two ranks are delivered in the order in which they were sent.

    Parameters
    ----------
    rank : int
        This rank. Messages to itself are delivered by the next `poll`, without MPI.
    kinds : MessageKinds
        Kinds of messages that may be sent and may arrive.
    channels : mapping of int to ControlChannel
        By the rank to which a channel sends. Handlers receive the channel's `source` as sender: between a server and a
        worker the same rank, in a ring the neighbour on the other side.
    recorder : Recorder
        Receives a "send" event for each message.
    stage : int
        Stage that is noted with these events; -1: none.
    """

    def __init__(
        self,
        rank: int,
        kinds: MessageKinds,
        channels: Mapping[int, ControlChannel],
        recorder: Recorder,
        stage: int = -1,
    ) -> None:
        self.rank, self.kinds, self.recorder, self.stage = rank, kinds, recorder, stage
        self.channels = dict(channels)
        self.unresponsive: set[int] = set()  # ranks that do not answer; `idle` does not wait for what is sent to them
        self._polled = tuple(self.channels.values())
        self._disconnected: list[ControlChannel] = []  # kept, since MPI may still write to their buffers
        self._to_self: deque[Any] = deque()
        self._handlers: dict[type, tuple[Handler, ...]] = {}

    def on(self, kind: type, handler: Handler) -> None:
        """Call `handler(sender, message)` for each message of `kind`, after handlers registered before it.

        Raises `TypeError` if `kind` is none of the mailbox's kinds.
        """
        if kind not in self.kinds:
            raise TypeError(f"{kind.__name__} is not among the kinds of messages of this mailbox")
        self._handlers[kind] = (*self._handlers.get(kind, ()), handler)

    def send(self, peer: int, message: Any, step: int | None = -1) -> None:
        """Send `message` to rank `peer`, after those sent before. A message to a rank without a channel is dropped.

        Parameters
        ----------
        peer : int
            Rank that receives it.
        message : NamedTuple
            Message of one of the mailbox's kinds.
        step : int or None
            Training step that is noted in the trace; None: no event is noted.
        """
        if peer == self.rank:
            self._to_self.append(message)
            return
        channel = self.channels.get(peer)
        if channel is None:
            return
        begin = clock()
        channel.send(self.kinds.pack(message))
        if step is not None:
            self.recorder.record("send", begin, clock(), step, -1, peer, channel.BYTES, self.stage)

    def send_all(self, peers: Iterable[int], message: Any, step: int | None = -1) -> None:
        """Send `message` to each rank in `peers`; `step` is noted in the trace."""
        for peer in peers:
            self.send(peer, message, step)

    def poll(self) -> bool:
        """Deliver every message that has arrived; True if any was delivered."""
        arrived = False
        for channel in self._polled:
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

    def disconnect(self, peer: int) -> None:
        """Send nothing more to rank `peer`, which has failed, and deliver nothing more from it."""
        if peer in self.channels:
            self._disconnected.append(self.channels.pop(peer))
            self._polled = tuple(self.channels.values())

    def idle(self) -> bool:
        """Whether every message sent has left, except those to `unresponsive` ranks."""
        return all(channel.idle() for peer, channel in self.channels.items() if peer not in self.unresponsive)

    def requests(self) -> "list[Prequest]":
        """All persistent requests of the channels."""
        return [request for channel in self.channels.values() for request in channel.requests()]

    def close(self) -> None:
        """Free all channels; call when `idle`, and after the last message to this rank."""
        for channel in self.channels.values():
            channel.close()
