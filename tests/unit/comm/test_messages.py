"""Typed messages: what is packed is unpacked, wrong kinds are refused, handlers get what is meant for them."""

import math
from typing import NamedTuple

import pytest

from ringtmp.comm.messages import Mailbox, MessageKinds
from ringtmp.comm.point_to_point import CONTROL_FIELDS


class Stop(NamedTuple):
    """An order."""

    index: int
    signal: int


class Loss(NamedTuple):
    """All types of fields."""

    step: int
    loss: float
    final: bool


class Alive(NamedTuple):
    """No field at all."""


Widest = NamedTuple("Widest", [(f"field{n}", float) for n in range(CONTROL_FIELDS - 1)])
TooWide = NamedTuple("TooWide", [(f"field{n}", float) for n in range(CONTROL_FIELDS)])


class Text(NamedTuple):
    """A field that does not travel."""

    what: str


KINDS = MessageKinds(Stop, Loss, Alive, Widest)


class Loop:
    """A channel that delivers what it sends."""

    BYTES = 8 * CONTROL_FIELDS

    def __init__(self, source):
        self.source, self.sent, self.closed = source, [], False

    def send(self, packed):
        self.sent.append((*map(float, packed), *[7.0] * (CONTROL_FIELDS - len(packed))))

    def poll(self):
        sent, self.sent = self.sent, []
        return sent

    def idle(self):
        return not self.sent

    def requests(self):
        return [self]

    def close(self):
        self.closed = True


class Events(list):
    """In place of a recorder."""

    def record(self, kind, start, end, step, micro_batch, peer, size, stage):
        assert start <= end
        self.append((kind, step, peer, size, stage))


@pytest.fixture
def box():
    return Mailbox(0, KINDS, {1: Loop(1), 2: Loop(3)}, Events(), stage=5)


MESSAGES = [
    Stop(7, 15),
    Stop(2**53, -1),
    Loss(3, 0.1 + 0.2, True),
    Loss(0, math.inf, False),
    Alive(),
    Widest(*map(float, range(10))),
]


@pytest.mark.parametrize("message", MESSAGES)
def test_round_trip(message):
    """Each field has its type again; what a buffer holds behind the last field does not matter."""
    packed = KINDS.pack(message)
    assert len(packed) == 1 + len(message)
    behind = (99.0,) * (CONTROL_FIELDS - len(packed))
    found = KINDS.unpack((*map(float, packed), *behind))
    assert type(found) is type(message) and found == message
    assert list(map(type, found)) == list(map(type, message))


@pytest.mark.parametrize("kinds", [(TooWide,), (Text,), (int,), (tuple,), (Stop, Loss, Stop)])
def test_wrong_kinds_are_refused(kinds):
    with pytest.raises(TypeError, match=kinds[-1].__name__):
        MessageKinds(*kinds)


def test_unknown_messages_are_refused(box):
    with pytest.raises(TypeError, match="Text"):
        box.send(1, Text("no"))
    with pytest.raises(TypeError, match="tuple"):
        box.send(1, (0.0, 1.0))
    with pytest.raises(TypeError, match="Text"):
        box.on(Text, lambda sender, message: None)


def test_handlers(box):
    """In the order in which they were registered, with the sender, and only for their kind; None for a kind is fine."""
    heard = []
    box.on(Stop, lambda sender, message: heard.append(("first", sender, message)))
    box.on(Loss, lambda sender, message: heard.append(("loss", sender, message)))
    box.on(Stop, lambda sender, message: heard.append(("second", sender, message)))
    assert not box.poll()
    box.send(1, Stop(1, 2))
    box.send(2, Alive())
    box.send(2, Loss(3, 0.5, True))
    assert box.poll()
    stop, loss = Stop(1, 2), Loss(3, 0.5, True)
    assert heard == [("first", 1, stop), ("second", 1, stop), ("loss", 3, loss)]
    assert not box.poll()


def test_to_itself(box):
    """Delivered by the next poll, also what a handler sends meanwhile; never noted in the trace."""
    heard = []
    box.on(Stop, lambda sender, message: (heard.append((sender, message)), message.index and box.send(0, Stop(0, 9))))
    box.send(0, Stop(4, 9))
    assert not heard
    assert box.poll()
    assert heard == [(0, Stop(4, 9)), (0, Stop(0, 9))]
    assert not box.recorder


def test_trace(box):
    box.send(1, Alive(), step=4)
    box.send(2, Alive(), step=None)
    box.send_all([1, 2, 8], Alive())  # rank 8 has no channel
    size = 8 * CONTROL_FIELDS
    assert box.recorder == [("send", 4, 1, size, 5), ("send", -1, 1, size, 5), ("send", -1, 2, size, 5)]


def test_disconnect(box):
    """Nothing more to or from a rank that has failed; and who does not answer holds nobody up."""
    heard = []
    box.on(Alive, lambda sender, message: heard.append(sender))
    gone = box.channels[1]
    box.send_all([1, 2], Alive())
    assert not box.idle()
    box.disconnect(1)
    box.disconnect(1)
    box.poll()
    assert heard == [3] and box.idle()
    box.send_all([1, 2], Alive())
    box.unresponsive.add(2)
    assert box.idle() and len(gone.sent) == 1
    assert len(box.requests()) == 1
    box.close()
    assert box.channels[2].closed and not gone.closed
