"""Makes the parts of a rank from its setup: server with checkpoints and copies in node memory, and worker."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ringtmp.comm.messages import Mailbox
from ringtmp.data.sampler import Sampler
from ringtmp.nn.optimizers import Optimizer
from ringtmp.ps.allreduce import AllReduce
from ringtmp.ps.compression import make_compressor
from ringtmp.ps.consistency import Consistency
from ringtmp.ps.exchange import Exchange, KeyRangeViews, ServerExchange
from ringtmp.ps.messages import Drop, ForgetOlder, Loss, Rejoin
from ringtmp.ps.serving.checkpointing import CheckpointCollector, WorkerCheckpoints
from ringtmp.ps.serving.mirror import Incoming, Outgoing
from ringtmp.ps.serving.node_memory import ServerReplica
from ringtmp.ps.serving.served_range import AnswerGate, RangeListener, ServedRange, make_served_ranges
from ringtmp.ps.serving.server import Server
from ringtmp.ps.serving.updates import Updater
from ringtmp.ps.setup import RankSetup
from ringtmp.ps.worker import Worker

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class ServerParts:
    """A server with its checkpoints and its copies in node memory.

    Parameters
    ----------
    setup : RankSetup
        Setup of a rank that serves.
    mailbox : Mailbox
        Delivers control messages.
    checkpoint_comm : Intracomm
        Carries parts of checkpoints alone.
    replica_comm : Intracomm or None
        Carries copies for node memory alone; None: no copies are kept.
    """

    def __init__(
        self,
        setup: RankSetup,
        mailbox: Mailbox,
        checkpoint_comm: "Intracomm",
        replica_comm: "Intracomm | None",
    ) -> None:
        session, config, job, workers = setup.session, setup.config, setup.job, setup.roles.workers
        compressor = make_compressor(config.compression, job.dtype, config.topk)
        rule = Consistency(config.bound, config.backup)
        local = config.local_steps > 1  # the workers' own optimizers have been at work
        optimizer = Optimizer("sgd") if local else job.optimizer()
        mine = [keys for keys in setup.ranges if keys.server == session.rank]
        ranges = make_served_ranges(mine, workers, optimizer, job.dtype, job.start)
        load_ranges(setup, ranges)
        self.collector = CheckpointCollector(
            checkpoint_comm,
            setup.model,
            setup.ranges,
            ranges,
            job.optimizer().slots,
            session.checkpoints,
            config.local_steps,
            job.start,
            mailbox,
        )
        self.replica = make_replica(setup, ranges, mailbox, replica_comm) if replica_comm else None
        updater = Updater(
            workers,
            rule,
            optimizer,
            compressor,
            session.recorder,
            rate=(lambda step: 1.0) if local else job.rate,
            batch_size=config.batch_size,
            threads=config.threads,
            paced=setup.speed.updates,
            nanoseconds=setup.speed.nanoseconds,
            probe=session.probe,
        )
        listeners: list[RangeListener] = [self.collector]
        gate: AnswerGate | None = self.replica
        if self.replica:
            listeners.append(self.replica)
        self.server = Server(
            session.net, ranges, workers, rule, updater, compressor, mailbox, session.recorder, listeners, gate
        )


def load_ranges(setup: RankSetup, ranges: list[ServedRange]) -> None:
    """Give this server's `ranges` their first weights and slots: from node memory, a checkpoint, or `setup`'s seed."""
    job = setup.job
    if job.recalled:
        for served in ranges:
            weights, slots = setup.restored[served.keys.number]
            served.weights[...] = weights
            for name, array in slots.items():
                served.slots[name][...] = array
        return
    layers = sorted({segment.layer for served in ranges for segment in served.keys.segments})
    records = dict(zip(layers, setup.read_layers(layers), strict=True)) if job.marker and layers else {}

    # One layer at a time: a server never holds more of the model than its own ranges and one layer.
    for index in layers:
        layer = setup.model.layers[index]
        flat, slots = np.zeros(layer.count, job.dtype), {}
        if index in records:
            layer.pack(flat, records[index].parameters)
            for name, slot in records[index].slots.items():
                slots[name] = np.zeros(layer.count, job.dtype)
                layer.pack(slots[name], slot)
        else:
            layer.initialise(flat, setup.config.seed, index)
        for served in ranges:
            served.load(index, flat, slots)


def make_replica(
    setup: RankSetup, ranges: list[ServedRange], mailbox: Mailbox, comm: "Intracomm"
) -> ServerReplica | None:
    """This server's copies in node memory, with the channel to the rank that holds them too; None if it has no ranges.

    Collective over the servers and holders of `comm`, which carries nothing else.

    Parameters
    ----------
    setup : RankSetup
        Setup of this rank.
    ranges : list of ServedRange
        This server's ranges.
    mailbox : Mailbox
        Delivers control messages.
    comm : Intracomm
        Carries the copies.
    """
    session = setup.session
    pair = setup.replica_pairs.get(session.rank)
    if session.rank not in setup.replica_holders or not pair:
        return None
    holder, mirror = setup.replica_holders[session.rank], None
    if holder >= 0:
        mirror = Outgoing(comm, holder, pair, [served.keys for served in ranges], session.recorder, session.probe)
        _mark_lost_holder(mirror, mailbox)
    everybody = range(session.size)
    return ServerReplica(
        ranges,
        pair,
        mailbox,
        list(setup.replica_holders),
        start=setup.job.start,
        period=setup.config.local_steps,
        recorder=session.recorder,
        mirror=mirror,
        on_durable=(lambda: mailbox.send_all(everybody, ForgetOlder())) if session.rank == 0 else lambda: None,
    )


def _mark_lost_holder(mirror: Outgoing, mailbox: Mailbox) -> None:
    """Make `mirror` stop waiting for a holder that does not answer."""

    def on_drop(sender: int, message: Drop) -> None:
        if message.worker == mirror.holder and message.loss != Loss.FAILED:
            mirror.lost = True

    def on_rejoin(sender: int, message: Rejoin) -> None:
        if message.worker == mirror.holder:
            mirror.lost = False

    mailbox.on(Drop, on_drop)
    mailbox.on(Rejoin, on_rejoin)


def make_incoming(setup: RankSetup, comm: "Intracomm") -> list[Incoming]:
    """The ends of the channels on `comm` by which the rank of `setup` receives other servers' copies."""
    return [
        Incoming(comm, server, setup.replica_pairs[server], [k for k in setup.ranges if k.server == server])
        for server, holder in setup.replica_holders.items()
        if setup.rank == holder and setup.replica_pairs.get(server)
    ]


def make_worker(
    setup: RankSetup, mailbox: Mailbox, own_server: Server | None, poll_others: Callable[[], bool]
) -> Worker:
    """The worker of this rank.

    Parameters
    ----------
    setup : RankSetup
        Setup of a rank that works.
    mailbox : Mailbox
        Delivers control messages.
    own_server : Server or None
        The server of this rank.
    poll_others : callable
        Polls this rank's other work; returns whether anything has happened.
    """
    session, config, job, stage = setup.session, setup.config, setup.job, setup.stage
    servers = setup.roles.servers
    assert stage and job.data
    views = KeyRangeViews(setup.ranges, stage.states)
    exchange: Exchange
    checkpoints = None
    if servers:
        weight = (lambda samples: samples / config.batch_size) if config.local_steps > 1 else None
        compressor = make_compressor(config.compression, job.dtype, config.topk)
        exchange = ServerExchange(
            session.net, views, compressor, mailbox, session.recorder, own_server, setup.membership, weight
        )
    else:
        exchange = AllReduce(
            session.net,
            views,
            job.optimizer(),
            job.rate,
            session.recorder,
            setup.speed.updates,
            setup.speed.nanoseconds,
        )
        checkpoints = WorkerCheckpoints(
            session.rank, setup.writers, session.checkpoints, setup.own_layers, job.start, mailbox
        )
    return Worker(
        session.rank,
        stage,
        config,
        exchange,
        setup.batch_split,
        mailbox,
        session.recorder,
        Sampler(job.data, config.seed, config.batch_size),
        setup.speed.paces,
        poll_others,
        start=job.start,
        total=setup.table.total,
        eval_every=setup.table.every,
        crowded=session.is_crowded(),
        servers=servers,
        local_step=_local_step(setup) if config.local_steps > 1 else None,
        can_rejoin=bool(servers) and own_server is None,
        checkpoints=checkpoints,
        probe=session.probe,
    )


def _local_step(setup: RankSetup) -> Callable[[int, int], None]:
    """An optimizer step of one layer on the worker itself; the slots start at 0 after each exchange."""
    assert setup.stage
    states, optimizer = setup.stage.states, setup.stage.optimizer
    start, period, rate = setup.job.start, setup.config.local_steps, setup.job.rate

    def local_step(layer: int, step: int) -> None:
        state, number = states[layer], (step - start) % period
        if not number:
            for slot in state.slots.values():
                slot.fill(0)
        optimizer.clip(state.gradient, 0.0)
        optimizer.update(state.flat, state.gradient, state.slots, rate(step), number + 1)
        state.layer.refresh_cache(state.parameters)

    return local_step
