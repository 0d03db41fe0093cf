"""A rank while it trains: it serves, works, coordinates, or several of these; and how all come to an end together."""

import time
import traceback
from typing import TYPE_CHECKING

import numpy as np

from ps import messages as post
from ps.allreduce import AllReduce
from ps.checkpointing import CheckpointCollector
from ps.compression import make_filter
from ps.consistency import Consistency
from ps.coordinator import Coordinator
from ps.exchange import Exchange, Parameters, ServerLink
from ps.messages import Message, Post
from ps.mirror import Incoming, Outgoing
from ps.node_memory import Versions
from ps.server import Served, Server
from ps.worker import Dropped, Worker
from ringtmp.checkpoint import format as checkpoint
from ringtmp.comm import mpi
from ringtmp.comm.waiting import Backoff
from ringtmp.data.sampler import Sampler
from ringtmp.errors import RunFailure
from ringtmp.nn.optimizers import Optimizer
from ringtmp.trace.recorder import clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from ps.trainer import ServerTrainer

_GLANCE = 500_000_000  # nanoseconds between two looks at who is there


class RankLoop:
    """This rank's part in a launch. Collective over the launch's `comm`."""

    def __init__(self, launch: "ServerTrainer") -> None:
        self.launch, self.rank, self.size = launch, launch.rank, launch.size
        self.config, self.job, self.roles, self.recorder = (
            launch.config,
            launch.job,
            launch.roles,
            launch.session.recorder,
        )
        self.end = launch.table.total  # steps that are made, unless a stop is ordered
        self.over = self.asked = False
        self.made = self.job.start  # steps that this worker has made without servers
        self.lost: set[int] = set()  # workers whose processes do not answer
        self.shares = launch.shares
        self.places = launch.session.peers.places
        self.ship = launch.session.comm.Dup()  # for sets alone
        self.lanes = launch.session.comm.Dup() if launch.session.memory else None  # for versions alone
        self.incoming: list[Incoming] = []  # versions of other servers
        self.outgoing: Outgoing | None = None
        self.joined = -1  # the step from which this worker is taken back
        crowded = launch.session.is_crowded()
        self.patience = Backoff(crowded)
        self.post = Post(launch.session.net, self._peers(), self.recorder)
        heeds = (
            (post.OVER, self._over),
            (post.DROP, self._drop),
            (post.JOIN, self._join),
            (post.STOP, self._stop),
            (post.SET, self._set),
            (post.CLEAR, self._clear),
        )
        for kind, heed in heeds:
            self.post.on(kind, heed)
        self.filter = make_filter(self.config.compression, self.job.dtype, self.config.topk)
        self.server: Server | None = None
        self.keeper: CheckpointCollector | None = None
        self.worker: Worker | None = None
        self.coordinator: Coordinator | None = None
        if launch.serves:
            self._make_server()
        if self.lanes:
            self._make_lanes(self.lanes)
        if self.rank == 0:
            self.coordinator = Coordinator(
                self.post,
                self.shares,
                range(self.size),
                launch.writers,
                launch.listener,
                self.places,
                batch_size=self.config.batch_size,
                test_samples=self.job.info.n_test,
                start=self.job.start,
                period=self.config.local_steps,
                total=self.end,
            )
        if launch.works:
            self._make_worker(crowded)
        self.glanced = clock()

    def _peers(self) -> set[int]:
        """Ranks with which this one has a link: everybody with servers and with rank 0."""
        everybody = {*range(self.size)}
        if self.rank == 0 or (self.launch.serves and self.launch.works):
            return everybody
        return {0, *self.roles.servers, *(self.roles.workers if self.launch.serves else ())}

    def _make_server(self) -> None:
        launch, config, job = self.launch, self.config, self.job
        local = config.local_steps > 1  # workers' own optimizers have been at work
        mine = [keys for keys in launch.ranges if keys.server == self.rank]
        self.server = server = Server(
            launch.session.net,
            mine,
            self.roles.workers,
            Consistency(config.bound, config.backup),
            Optimizer("sgd") if local else job.optimizer(),
            self.filter,
            self.post,
            self.recorder,
            rate=(lambda step: 1.0) if local else launch.job.rate,
            batch_size=config.batch_size,
            start=job.start,
            threads=config.threads,
            paced=launch.paced,
            nanoseconds=launch.nanoseconds,
        )
        server.probe = launch.session.probe
        for number, (weights, remembered) in launch.taken.items():
            served = server.numbered[number]
            served.weights[...] = weights
            for name, array in remembered.items():
                served.slots[name][...] = array
        layers = sorted({segment.layer for keys in mine for segment in keys.segments}) if not job.recalled else []
        stored = dict(zip(layers, launch.stored(layers), strict=True)) if job.marker and layers else {}
        for layer in layers:  # one at a time: a server never holds more than its own
            kind = launch.model.layers[layer]
            flat, slots = np.zeros(kind.count, job.dtype), {}
            if layer in stored:
                kind.pack(flat, stored[layer].parameters)
                for name, slot in stored[layer].slots.items():
                    slots[name] = np.zeros(kind.count, job.dtype)
                    kind.pack(slots[name], slot)
            else:
                kind.initialise(flat, config.seed, layer)
            server.load(layer, flat, slots)
        self.keeper = keeper = CheckpointCollector(
            self.ship,
            launch.model,
            launch.ranges,
            server.served,
            job.optimizer().slots,
            launch.session.checkpoints,
            config.local_steps,
            job.start,
        )

        def passed(served: Served) -> None:
            steps = served.version if server.rule.backup else served.clock.least()
            keeper.passed(served, steps)
            if server.versions:
                server.versions.passed(served, steps)

        server.arrived = passed

    def _make_lanes(self, comm: "Intracomm") -> None:
        """Where the versions of this rank's ranges lie, and the ways of versions from here and to here."""
        launch = self.launch
        for server, holder in launch.mirrors.items():
            sides = launch.sides.get(server)
            ranges = [keys for keys in launch.ranges if keys.server == server]
            if self.rank == holder and sides:
                self.incoming.append(Incoming(comm, server, sides, ranges))
            if self.rank != server or not sides or not self.server:
                continue
            if holder >= 0:
                self.outgoing = Outgoing(comm, holder, sides, ranges, self.recorder, launch.session.probe)
            self.server.versions = Versions(
                self.server.served,
                sides,
                self.post,
                list(launch.mirrors),
                start=self.job.start,
                period=self.config.local_steps,
                recorder=self.recorder,
                mirror=self.outgoing,
                clear=(lambda: self.post.tell(range(self.size), post.CLEAR)) if self.rank == 0 else lambda: None,
            )

    def _make_worker(self, crowded: bool) -> None:
        launch, config, stage = self.launch, self.config, self.launch.stage
        data = self.job.data
        assert stage and data
        local = config.local_steps > 1
        parameters = Parameters(launch.ranges, stage.states)
        exchange: Exchange
        if self.roles.servers:
            share = (lambda samples: samples / config.batch_size) if local else None
            exchange = ServerLink(
                launch.session.net,
                parameters,
                self.filter,
                self.post,
                self.recorder,
                self.server,
                share,
                self.shares.generation,
            )
        else:
            exchange = AllReduce(
                launch.session.net,
                parameters,
                self.job.optimizer(),
                launch.job.rate,
                self.recorder,
                launch.paced,
                launch.nanoseconds,
            )
        self.worker = Worker(
            self.rank,
            stage,
            config,
            exchange,
            self.shares,
            self.post,
            self.recorder,
            Sampler(data, self.config.seed, self.config.batch_size),
            launch.paces,
            self._serve,
            start=self.job.start,
            total=self.end,
            every=launch.table.every,
            crowded=crowded,
            beats=self.roles.servers,
            local=self._local_step if local else None,
            passed=(lambda step: None) if self.roles.servers else self._made,
            come_back=self._come_back if self.roles.servers and not self.launch.serves else None,
            probe=launch.session.probe,
        )

    # ---- training -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train; on return nothing is on its way any more."""
        try:
            if self.worker:
                self._work(self.worker)
            self._finish()
        except RunFailure as failure:
            raise RunFailure(f"{failure}{self._last_set()}") from None
        self._meet()
        self._close()

    def _last_set(self) -> str:
        """Where to go on, for the message of a failure."""
        folder = self.job.folder
        if not folder:
            return ""
        whole = checkpoint.committed(folder.checkpoints)
        return (
            f"; go on from step {whole[-1]} with: --resume {folder.path}" if whole else "; there is no checkpoint yet"
        )

    def _work(self, worker: Worker) -> None:
        try:
            worker.run()
        except Dropped:
            mpi.warn(
                "has been dropped by the others, comes too late to be taken back, and waits for the end of the job"
            )
            while True:  # they end it
                time.sleep(1)
        except RunFailure:
            raise
        except Exception as error:
            if self.launch.serves or not self.roles.servers:
                raise  # it cannot leave without taking parameters along
            text = "".join(traceback.format_exception(error)).rstrip()
            mpi.warn(f"takes no part any more: {type(error).__name__}: {error}\n{text}")
            self.post.tell(self.roles.servers, post.LEAVE)
            return
        self.post.tell({0, *self.roles.servers}, post.END)

    def _come_back(self) -> int:
        """Ask to be taken back; the step from which on this worker has a share again, once it has asked for weights.

        Answers to what it pushed before may be old, or never have left: servers see to it that each is there, and then
        all weights come once more, as they are before that step.
        """
        worker = self.worker
        assert worker and isinstance(worker.exchange, ServerLink)
        mpi.warn("has been dropped by the others while it stood still, and asks to be taken back")
        self.joined = -1
        self.post.send(0, post.BACK, worker.exchange.pushes_made)
        self.patience.reset()
        since = clock()
        while self.joined < 0 or any(worker.exchange.missing(layer) >= 0 for layer in worker.layers):
            if self.over:
                raise Dropped
            if worker.poll():
                self.patience.reset()
            else:
                self.patience.pause()
        self.recorder.record("wait", since, clock(), -1)
        worker.exchange.ask(self.joined - 1, len(self.shares.joins))
        return self.joined

    def _local_step(self, layer: int, step: int) -> None:
        """An optimizer step of this worker's own; its slots begin anew after each exchange."""
        assert self.launch.stage
        state, optimizer = self.launch.stage.states[layer], self.launch.stage.optimizer
        number = (step - self.job.start) % self.config.local_steps
        if not number:
            for slot in state.slots.values():
                slot.fill(0)
        optimizer.clip(state.gradient, 0.0)
        optimizer.update(state.flat, state.gradient, state.slots, self.launch.job.rate(step), number + 1)
        state.layer.refresh_cache(state.parameters)

    def _serve(self) -> bool:
        """What this rank does beside working, or alone; whether anything has happened."""
        moved = False
        if self.server and self.keeper:
            moved = self.server.poll()
            moved |= self.keeper.poll()
            if self.server.versions:
                moved |= self.server.versions.poll(not moved)
        for each in self.incoming:
            moved |= each.poll()
        for part in self.launch.session.checkpoints.poll():
            self.post.send(0, post.SAVED, *part)
            moved = True
        now = clock()
        if now - self.glanced > _GLANCE:
            if self.server and now - self.glanced > 4 * _GLANCE:  # this rank has stood still, and heard nobody
                self.server.listen(now)
            self.glanced = now
            self._glance(now)
        return moved

    def _glance(self, now: int) -> None:
        """Has a signal come? Is everybody there? Without a server nobody can go on, without a worker all others can."""
        if self.launch.session.stop_request() and not self.asked:
            self.asked = True
            self.post.send(0, post.ASK, self.launch.session.stop_request())
        if not self.worker:
            self.recorder.between_steps(-1)
        for server in self.roles.servers:
            host, pid = self.places[server]
            if self.launch.session.peers.has_ended(server):
                raise RunFailure(f"the server on rank {server} of {host} (process {pid}) was killed")
        if self.coordinator and self.server and not self.worker:
            limit = self.config.worker_timeout
            self.coordinator.look(self.server.silent(now, int(limit * 1e9)), limit)

    # ---- the end ------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Serve until all have ended."""
        self.patience.reset()
        since = clock()
        while not self.over or not self.post.idle() or not self._lanes_ended():
            begin, recorded = clock(), self.recorder.recorded
            moved = self.post.poll()
            moved |= self._serve()
            if self.coordinator and not self.over and not moved and self._all_ended():
                self.coordinator.over()
                self.over = True
            if moved or self.recorder.recorded != recorded:
                if begin > since:
                    self.recorder.record("wait", since, begin, -1)
                since = clock()
                self.patience.reset()
            else:
                self.patience.pause()
        self.recorder.record("wait", since, clock(), -1)

    def _lanes_ended(self) -> bool:
        """Whether no version is on its way from here or to here (after the end)."""
        sent = self.outgoing.finish() if self.outgoing else True
        return sent and all(each.ended for each in self.incoming)

    def _all_ended(self) -> bool:
        """Every worker has its last weights, every report is in, every set is written (rank 0)."""
        if not self.coordinator or not self.coordinator.finished():
            return False
        if self.launch.session.checkpoints.writer.busy:
            return False
        return not self.server or not self.keeper or (self.server.finished() and self.keeper.idle())

    def _meet(self) -> None:
        """All who are there are done. From here on the launch's communicators are theirs alone."""
        launch = self.launch
        with self.recorder.timed("wait", -1):
            if self.lost:
                there = launch.session.comm.group.Excl(sorted(self.lost))
                launch.session.comm, launch.session.net = (
                    launch.session.comm.Create_group(there),
                    launch.session.net.Create_group(there, 1),
                )
                mpi.mark_degraded(launch.session.comm, self.coordinator.fence if self.coordinator else lambda: None)
            launch.session.comm.Barrier()

    def _close(self) -> None:
        if self.lost:
            return  # some requests may never end; the process does
        for lane in (self.outgoing, *self.incoming):
            if lane:
                lane.close()
        if self.worker and self.shares.there(self.rank):
            self.worker.exchange.close()
        if self.server:
            self.server.close()
        self.post.close()

    # ---- what comes by post -------------------------------------------------------------------------------------

    def _over(self, sender: int, message: Message) -> None:
        self.over = True

    def _stop(self, sender: int, message: Message) -> None:
        self.end = min(self.end, int(message[1]))

    def _drop(self, sender: int, message: Message) -> None:
        worker, step, how = (int(number) for number in message[1:4])
        self.shares.drop(worker, step)
        if how != post.FAILED:
            self.lost.add(worker)
            self.post.silent.add(worker)
            if self.outgoing and self.outgoing.holder == worker:
                self.outgoing.lost = True
        if how == post.KILLED:
            self.post.cut(worker)
        if self.server:
            self.server.drop(worker, how == post.KILLED)
        if worker == self.rank and self.worker:
            self.worker.dropped = True

    def _join(self, sender: int, message: Message) -> None:
        worker, step, pushes, generation = (int(number) for number in message[1:5])
        self.shares.join(worker, step)
        self.lost.discard(worker)
        self.post.silent.discard(worker)
        if self.outgoing and self.outgoing.holder == worker:
            self.outgoing.lost = False
        if self.server:
            self.server.join(worker, step, pushes, generation)
        if worker == self.rank and self.worker:
            self.worker.dropped, self.joined = False, step

    def _clear(self, sender: int, message: Message) -> None:
        self.launch.forget_older()

    def _made(self, step: int) -> None:
        """Without servers every rank has its layers written as it passes the step of a set."""
        self.made = step
        if self.launch.session.checkpoints.due(step) and self.rank in self.launch.writers:
            assert self.worker
            self.worker.take_all()
            self.launch.session.checkpoints.save(step, self.launch.mine())

    def _set(self, sender: int, message: Message) -> None:
        step = int(message[1])
        if self.keeper:
            self.launch.session.checkpoints.orders.add(step)
            self.keeper.ordered(step)
        elif self.rank in self.launch.writers:
            self.launch.session.checkpoints.ordered(step, self.made)
