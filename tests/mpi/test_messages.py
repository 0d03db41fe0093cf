"""Typed messages over MPI: in order, more than a channel has room for, in two directions, to any number of peers."""

from typing import NamedTuple

import pytest

from ringtmp.comm.messages import Mailbox, MessageKinds
from ringtmp.comm.point_to_point import FIRST_TAG, ControlChannel
from ringtmp.comm.waiting import Backoff
from ringtmp.trace.recorder import Recorder

MANY = 50  # more than a channel has receives posted


class Number(NamedTuple):
    """Any rank -> any other."""

    sender: int
    number: int
    half: float
    last: bool


class Answer(NamedTuple):
    """Back."""

    number: int


KINDS = MessageKinds(Number, Answer)


def until(done, *boxes):
    backoff = Backoff(crowded=True)
    while not done() or not all(box.idle() for box in boxes):
        for box in boxes:
            box.poll()
        backoff.pause()


@pytest.mark.mpi
def test_between_all(comm):
    """Each rank with each other, and with itself: every message once, in order, with its sender."""
    everyone = range(comm.size)
    channels = {peer: ControlChannel(comm, peer, peer) for peer in everyone if peer != comm.rank}
    box = Mailbox(comm.rank, KINDS, channels, Recorder(None, {}))
    heard: dict[int, list[Number]] = {peer: [] for peer in everyone}
    answers: dict[int, list[int]] = {peer: [] for peer in everyone}

    def take(sender, message):
        heard[sender].append(message)
        if message.last:
            box.send(sender, Answer(message.number))

    box.on(Number, take)
    box.on(Answer, lambda sender, message: answers[sender].append(message.number))
    for number in range(MANY):
        box.send_all(everyone, Number(comm.rank, number, number / 2, number == MANY - 1), number)
    until(lambda: all(answers.values()), box)
    for peer in everyone:
        assert heard[peer] == [Number(peer, n, n / 2, n == MANY - 1) for n in range(MANY)]
        assert all(type(message.last) is bool and type(message.number) is int for message in heard[peer])
        assert answers[peer] == [MANY - 1]
    assert len(box.requests()) == 2 * len(box.channels) * 8
    comm.Barrier()
    box.close()


@pytest.mark.mpi
def test_ring(comm):
    """Two mailboxes, one in each direction, also where the left and the right neighbour are the same rank."""
    left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    if comm.size == 1:
        return
    forth = Mailbox(comm.rank, KINDS, {right: ControlChannel(comm, left, right)}, Recorder(None, {}))
    back = Mailbox(comm.rank, KINDS, {left: ControlChannel(comm, right, left, FIRST_TAG)}, Recorder(None, {}))
    heard: list[tuple[str, int, int]] = []
    forth.on(Answer, lambda sender, message: heard.append(("forth", sender, message.number)))
    back.on(Answer, lambda sender, message: heard.append(("back", sender, message.number)))
    for number in range(MANY):
        forth.send(right, Answer(number))
        back.send(left, Answer(-number))
    until(lambda: len(heard) == 2 * MANY, forth, back)
    assert [each for each in heard if each[0] == "forth"] == [("forth", left, n) for n in range(MANY)]
    assert [each for each in heard if each[0] == "back"] == [("back", right, -n) for n in range(MANY)]
    comm.Barrier()
    forth.close()
    back.close()
