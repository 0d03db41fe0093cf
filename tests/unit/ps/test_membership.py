"""Membership: who takes part in which step, what rank 0 decides, which pushes count, and how samples are divided."""

import pytest

from ringtmp.comm.messages import Mailbox
from ringtmp.ps.batch_split import BatchSplit, proportional_counts
from ringtmp.ps.membership import (
    Membership,
    MembershipError,
    MembershipLeader,
    PushLedger,
    Standing,
    WorkerDroppedError,
)
from ringtmp.ps.messages import KINDS, Begin, Drop, Loss, Over, Rejoin, RejoinRequest, make_mailbox
from ringtmp.ps.serving.mirror import holder_of
from ringtmp.resilience.node_memory import FoundReplica, ParameterRange, covered, newest
from ringtmp.trace.recorder import Recorder


class Log:
    """Stands in for a mailbox: keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[list[int], object]] = []

    def send_all(self, peers, message, step=-1):
        self.sent.append((list(peers), message))


def own_mailbox(rank: int = 0) -> Mailbox:
    """A mailbox without channels: what a rank sends to itself arrives with the next `poll`."""
    return Mailbox(rank, KINDS, {}, Recorder(None, {}))


# ---- every rank -----------------------------------------------------------------------------------------------------


def test_a_worker_that_leaves_and_comes_back():
    members = Membership([1, 2, 3])
    assert members.active == [1, 2, 3]
    assert members.drop(2, 5, Loss.SILENT)
    assert not members.drop(2, 7, Loss.SILENT)  # it takes no part already
    assert (members.active, members.loss(2), members.unresponsive) == ([1, 3], Loss.SILENT, {2})
    members.rejoin(2, 9, 1)
    assert (members.active, members.loss(2), members.unresponsive) == ([1, 2, 3], None, set())
    assert [members.workers_in(step) for step in (4, 5, 8, 9)] == [[1, 2, 3], [1, 3], [1, 3], [1, 2, 3]]
    assert [members.generation_in(step) for step in (8, 9)] == [0, 1]
    assert members.drop(2, 9, Loss.SILENT)  # before it could make a step
    assert members.workers_in(9) == [1, 3]
    members.rejoin(2, 12, 2)
    assert members.generation == 2


@pytest.mark.parametrize(("loss", "answers"), [(Loss.FAILED, True), (Loss.SILENT, False), (Loss.KILLED, False)])
def test_whose_process_answers(loss, answers):
    members = Membership([0, 1])
    members.drop(1, 3, loss)
    assert members.unresponsive == (set() if answers else {1})
    assert members.loss(1) == loss
    assert not members.drop(1, 3, Loss.KILLED)  # the first loss stands
    assert members.loss(1) == loss


def test_illegal_transitions():
    members = Membership([1, 2, 3])
    with pytest.raises(MembershipError, match="worker 1 cannot rejoin: it is active"):
        members.rejoin(1, 4, 1)
    for worker, loss in ((1, Loss.FAILED), (2, Loss.KILLED)):
        members.drop(worker, 4, loss)
        with pytest.raises(MembershipError, match=f"worker {worker} cannot rejoin: it is {loss.name.lower()}"):
            members.rejoin(worker, 6, 1)
    members.drop(3, 8, Loss.SILENT)
    with pytest.raises(MembershipError, match="worker 3 cannot rejoin in step 7: it left in step 8"):
        members.rejoin(3, 7, 1)
    with pytest.raises(MembershipError, match="rejoin 2 follows rejoin 0"):
        members.rejoin(3, 8, 2)
    members.rejoin(3, 8, 1)  # none of the refusals has left a trace
    for call in (lambda: members.drop(0, 9, Loss.KILLED), lambda: members.rejoin(0, 9, 2)):
        with pytest.raises(MembershipError, match="rank 0 is no worker"):
            call()


def test_a_worker_dropped_before_the_step_of_its_rejoin_never_takes_part():
    """With local steps a rejoin waits for the next exchange, and a drop does not."""
    members = Membership([1, 2])
    members.drop(2, 5, Loss.SILENT)
    members.rejoin(2, 12, 1)
    members.drop(2, 10, Loss.SILENT)
    assert all(members.workers_in(step) == [1] for step in range(5, 20))


def test_decisions_arrive_by_message():
    members, mailbox = Membership([1, 2]), own_mailbox()
    members.follow(mailbox)
    mailbox.send(0, Drop(2, 5, Loss.SILENT))
    assert members.active == [1, 2]
    mailbox.poll()
    assert members.active == [1]
    mailbox.send(0, Rejoin(2, 9, 4, 1))
    mailbox.poll()
    assert members.workers_in(9) == [1, 2]


def test_the_mailbox_waits_for_no_worker_that_is_lost():
    class Comm:
        rank = 0

    mailbox = make_mailbox(Comm, [0], Recorder(None, {}))
    for worker, loss in enumerate(Loss, 1):
        mailbox.send(0, Drop(worker, 5, loss))
    mailbox.poll()
    assert mailbox.unresponsive == {1 + Loss.SILENT, 1 + Loss.KILLED}
    mailbox.send(0, Rejoin(1 + Loss.SILENT, 9, 4, 1))
    mailbox.poll()
    assert mailbox.unresponsive == {1 + Loss.KILLED}


# ---- rank 0 ---------------------------------------------------------------------------------------------------------


def test_rank_0_decides_and_tells_all():
    log = Log()
    leader = MembershipLeader([1, 2], log, range(3))
    assert leader.drop(2, 5, Loss.SILENT)
    assert not leader.drop(2, 6, Loss.KILLED)
    assert leader.active == [1]
    assert leader.rejoin(2, 9, pushes=4)
    assert not leader.rejoin(2, 9, pushes=4)
    assert leader.active == [1, 2]
    assert log.sent == [([0, 1, 2], Drop(2, 5, Loss.SILENT)), ([0, 1, 2], Rejoin(2, 9, 4, 1))]


@pytest.mark.parametrize("loss", [Loss.FAILED, Loss.KILLED])
def test_only_a_silent_worker_is_taken_back(loss):
    log = Log()
    leader = MembershipLeader([1, 2], log, range(3))
    leader.drop(2, 5, loss)
    assert not leader.rejoin(2, 9, pushes=4)
    assert leader.active == [1]
    assert len(log.sent) == 1


def test_what_rank_0_decides_every_rank_can_apply():
    """Any course of drops and rejoins: the members on the other end are the same."""
    log = Log()
    leader, members = MembershipLeader([1, 2, 3], log, range(4)), Membership([1, 2, 3])
    for step, (worker, loss) in enumerate([(2, Loss.SILENT), (3, Loss.FAILED), (2, None), (1, Loss.SILENT), (1, None)]):
        done = leader.drop(worker, step, loss) if loss is not None else leader.rejoin(worker, step, step)
        assert done
    for _, message in log.sent:
        if isinstance(message, Drop):
            members.drop(message.worker, message.step, Loss(message.loss))
        else:
            members.rejoin(message.worker, message.step, message.generation)
    assert members.active == leader.active == [1, 2]
    assert members.generation == 2


# ---- servers --------------------------------------------------------------------------------------------------------


def test_pushes_belong_to_announcements_in_order():
    ledger = PushLedger([1, 2], ranges=2)
    assert ledger.match(1, 0) is None  # the gradient came first
    ledger.announce(1, Begin(7, 16, 0))
    ledger.announce(1, Begin(8, 15, 0))
    assert ledger.match(1, 0) == ledger.match(1, 0) == (7, 16)  # one for each range
    assert ledger.match(1, 0) is None
    assert ledger.match(1, 1) == (8, 15)
    assert ledger.match(2, 0) is None
    assert ledger.void(1) == 0


def test_what_a_worker_sent_before_it_was_dropped_is_void():
    ledger = PushLedger([1, 2], ranges=1)
    for step in range(3):
        ledger.announce(1, Begin(step, 16, 0))
    ledger.rejoin(1, pushes=4, generation=1)
    assert ledger.void(1) == 4
    assert [ledger.match(1, push) for push in range(5)] == [None] * 5
    ledger.announce(1, Begin(3, 16, 0))  # sent before the rejoin, arrives after it
    ledger.announce(1, Begin(8, 0, 1))
    assert ledger.match(1, 4) == (8, 0)
    ledger.announce(2, Begin(3, 16, 0))  # of a worker that was never away
    assert ledger.match(2, 0) == (3, 16)


def test_an_announcement_may_overtake_the_rejoin():
    """They come from different ranks: the worker may have heard of its rejoin before the server."""
    ledger = PushLedger([1, 2], ranges=1)
    ledger.announce(1, Begin(8, 0, 1))
    assert ledger.match(1, 0) is None
    ledger.rejoin(1, pushes=2, generation=1)
    assert ledger.match(1, 2) == (8, 0)


@pytest.mark.parametrize("generation", [0, 2])
def test_no_rejoin_may_be_missing(generation):
    ledger = PushLedger([1], ranges=1)
    with pytest.raises(MembershipError, match=f"rejoin {generation} follows rejoin 0"):
        ledger.rejoin(1, 3, generation)


# ---- workers --------------------------------------------------------------------------------------------------------


def test_a_worker_knows_where_it_stands():
    mailbox, asked = own_mailbox(0), []
    standing = Standing(0, mailbox)
    mailbox.on(RejoinRequest, lambda sender, message: asked.append(message))
    standing.check()
    mailbox.send(0, Drop(1, 5, Loss.SILENT))  # another worker
    mailbox.poll()
    standing.check()
    mailbox.send(0, Drop(0, 5, Loss.SILENT))
    mailbox.poll()
    with pytest.raises(WorkerDroppedError):
        standing.check()
    standing.request(pushes=4)
    mailbox.poll()
    assert asked == [RejoinRequest(4)]
    assert not standing.accepted()
    mailbox.send(0, Rejoin(0, 9, 4, 1))
    mailbox.poll()
    assert standing.accepted()
    assert standing.rejoined == 9
    standing.check()


def test_a_request_after_the_end_of_the_run():
    mailbox = own_mailbox(0)
    standing = Standing(0, mailbox)
    mailbox.send(0, Drop(0, 5, Loss.SILENT))
    mailbox.send(0, Over())
    mailbox.poll()
    standing.request(pushes=4)
    with pytest.raises(WorkerDroppedError):
        standing.accepted()


# ---- samples --------------------------------------------------------------------------------------------------------


def test_a_batch_is_divided_among_the_workers_of_its_step():
    members = Membership([1, 2, 3])
    split = BatchSplit(members)
    members.drop(2, 5, Loss.SILENT)
    members.rejoin(2, 9, 1)
    for step in range(12):
        parts = [split.part(worker, step, 16) for worker in members.workers_in(step)]
        assert [first for first, _ in parts] == [sum(count for _, count in parts[:n]) for n in range(len(parts))]
        assert sum(count for _, count in parts) == 16
    assert [split.part(worker, 6, 16) for worker in (1, 3)] == [(0, 8), (8, 8)]


@pytest.mark.parametrize(
    ("samples", "weights", "counts"),
    [
        (10, [1, 1, 1], [4, 3, 3]),
        (10, [1, 4], [2, 8]),
        (3, [1, 1, 100], [1, 1, 1]),
        (2, [1, 1, 1], [1, 1, 0]),
        (0, [1, 2], [0, 0]),
    ],
)
def test_proportional_counts(samples, weights, counts):
    assert proportional_counts(samples, weights) == counts


def test_faster_workers_have_more_samples():
    split = BatchSplit(Membership([4, 6]), [1.0, 3.0])
    assert [split.part(worker, 0, 16) for worker in (4, 6)] == [(0, 4), (4, 12)]


# ---- copies ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("server", "servers", "workers", "nodes", "holder"),
    [
        (0, [0], [1, 2], "abc", 1),
        (0, [0], [1, 2], "aab", 2),
        (0, [0], [1, 2], "aaa", -1),
        (0, [0, 1], [2, 3], "abcd", 1),
        (1, [0, 1], [2, 3], "abcd", 0),
        (1, [0, 1], [2, 3], "aabc", 2),
        (2, [0, 1, 2], [0, 1, 2], "aba", 1),
    ],
)
def test_where_a_servers_copies_go(server, servers, workers, nodes, holder):
    assert holder_of(server, servers, workers, nodes) == holder


def test_parts_of_layers_make_a_whole():
    first, second, empty = ParameterRange(0, 0, 4, 9), ParameterRange(0, 4, 9, 9), ParameterRange(1, 0, 0, 0)
    assert covered([first, second, first, empty]) == {0, 1}
    assert covered([first, empty]) == {1}

    def held(step: int, *parts: ParameterRange) -> FoundReplica:
        return FoundReplica("p", 5, step, tuple(part.layer for part in parts), (), 2, parts)

    here = [(0, held(7, first, empty)), (1, held(7, second)), (0, held(8, first, empty)), (2, held(7, first, empty))]
    assert newest(here, 2) == (5, 7, {first: (0, "p"), second: (1, "p"), empty: (0, "p")})
    assert newest([*here, (1, held(8, second))], 2)[1] == 8
    assert newest(here[2:], 2) is None
