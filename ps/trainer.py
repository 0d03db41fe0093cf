"""`ps.train`: from a configuration to trained weights, with parameter servers or an all-reduce."""

import os
import socket
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ps import post
from ps.allreduce import AllReduce
from ps.consistency import Consistency
from ps.coordinator import Coordinator
from ps.filters import make_filter
from ps.keeper import Keeper, homes
from ps.link import Exchange, Parameters, ServerLink
from ps.post import Post
from ps.server import Server
from ps.worker import Dropped, Shares, Worker
from ringtmp.errors import RunFailure, UserError
from ringtmp.nn.layer import pieces
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.shards import key_ranges
from ringtmp.nn.stage import LayerState, Stage
from ringtmp.run import checkpoint, mpi
from ringtmp.run.config import RunConfig
from ringtmp.run.data import share_data
from ringtmp.run.job import Feeder
from ringtmp.run.launch import Launch, train_with
from ringtmp.run.links import Patience
from ringtmp.run.mpi import warn
from ringtmp.run.pace import UPDATE_FLOPS, Pace, Paced, lateness, parse_pace
from ringtmp.run.result import Result
from ringtmp.run.trace import clock
from ringtmp.run.units import parse_bytes, show_bytes

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

_GLANCE = 500_000_000  # nanoseconds between two looks at who is there


def train(
    *, comm: "Intracomm | None" = None, data: Any = None, out: str | None = None, progress: bool = True, **settings: Any
) -> Result:
    """Train with parameter servers, or with an all-reduce, on the ranks of `comm`. Collective over `comm`.

    Takes and gives back what `ringtmp.train` does; settings of the ring alone are not heeded.

    Parameters
    ----------
    comm : Intracomm, optional
        By default the world. Its first `servers` ranks serve, unless settings say otherwise.
    data : str or tuple of arrays, optional
        As `--data`, or (x, y) or (x, y, x_test, y_test) from Python (those of rank 0 count).
    out : str, optional
        Where to make a run folder; by default nothing is written, unless `resume` names a folder to go on in.
    progress : bool
        Whether rank 0 prints its progress.
    **settings
        Any field of `RunConfig`: consistency, staleness, servers, ...

    Raises
    ------
    UserError
        Bad input; on every rank.
    """
    return train_with(ServerLaunch, comm, data, out, progress, settings)


@dataclass(frozen=True)
class Roles:
    """Who serves and who works."""

    servers: tuple[int, ...]
    workers: tuple[int, ...]

    @classmethod
    def of(cls, config: RunConfig, ranks: int) -> "Roles":
        """As the configuration says. Raises `UserError` if nobody would be left to work."""
        everybody = tuple(range(ranks))
        if config.consistency == "allreduce":
            return cls((), everybody)
        if config.colocate:
            return cls(everybody, everybody)
        if config.servers >= ranks:
            raise UserError(
                f"servers: {config.servers} of {ranks} rank{'s' * (ranks > 1)} would serve and none work; start "
                f"at least "
                f"{config.servers + 1}, or let every rank do both (--colocate on)"
            )
        return cls(everybody[: config.servers], everybody[config.servers :])

    def word(self, rank: int) -> str:
        """`server`, `worker` or `both`."""
        return "both" if {rank} <= {*self.servers} & {*self.workers} else "server" if rank in self.servers else "worker"


class ServerLaunch(Launch):
    """One launch on a rank that serves, works, or both."""

    heading = "role"

    @staticmethod
    def check(config: RunConfig, ranks: int) -> None:  # noqa: D102
        workers = len(Roles.of(config, ranks).workers)
        if config.batch_size < workers:
            raise UserError(f"batch_size: {config.batch_size} leaves some of {workers} workers without a sample")
        if config.pieces > config.batch_size // workers:
            raise UserError(f"pieces: {config.pieces} exceeds the {config.batch_size // workers} samples of a worker")
        if config.backup >= workers:
            raise UserError(f"backup: {config.backup} of {workers} workers would be waited for by none; expected fewer")
        if config.clip_norm is not None:
            raise UserError(
                "clip_norm: needs the gradients of all layers before the first of them can be updated; servers update "
                "range by range; --clip-value bounds each number"
            )
        if parse_bytes(config.chunk, "chunk") < 64:
            raise UserError(f"chunk: expected at least 64 bytes, got {config.chunk}")
        if config.pace:
            parse_pace(config.pace, ranks)

    # ---- set-up -------------------------------------------------------------------------------------------------

    def build(self) -> None:  # noqa: D102
        config, job = self.config, self.job
        self.roles = Roles.of(config, self.size)
        self.serves, self.works = self.rank in self.roles.servers, self.rank in self.roles.workers
        self.every = job.timetable().every
        self.end = self.table.total
        counts = [layer.count for layer in self.model.layers]
        if not sum(counts):
            raise UserError("model: has no parameters; there is nothing to train")
        item = job.dtype.itemsize
        self.ranges = key_ranges(counts, parse_bytes(config.chunk, "chunk") // item, max(1, len(self.roles.servers)),
                                 config.colocate)  # fmt: skip
        self.homes = (
            homes(self.ranges, len(counts)) if self.roles.servers else [n % self.size for n in range(len(counts))]
        )
        self.writers = sorted({*self.homes, *self.roles.servers})
        self.speeds = parse_pace(config.pace, self.size) if config.pace else []
        job.data = share_data(self.comm, job.data, job.info, config.data, job.dtype, config.test_fraction)
        self.shares = Shares(self.roles.workers)
        self.local_steps = config.local_steps > 1
        self.stage: Stage | None = None
        self.keeper: Keeper | None = None
        self.server: Server | None = None
        self.coordinator: Coordinator | None = None
        self.paces: list[Pace] = []
        self.paced: Paced | None = None
        if self.works:
            share = pieces(config.batch_size, len(self.roles.workers))[0]
            updates = self.local_steps or not self.roles.servers
            self.stage = Stage(self.model, 0, len(counts), job.dtype, job.optimizer() if updates else Optimizer("sgd"),
                               pieces(share, config.pieces)[0], 1, config.threads)  # fmt: skip

    def families(self) -> set[str]:  # noqa: D102
        return {"serve"}

    def load(self) -> None:  # noqa: D102
        job = self.job
        self.start_layers: dict[int, dict[str, Any]] = {}
        if self.stage:
            if job.marker is None:
                self.stage.initialise(self.config.seed)
            else:
                for state, record in zip(self.stage.states, self._stored(range(len(self.model.layers))), strict=True):
                    _load(state, record)
                self.stage.derive()
            share = pieces(self.config.batch_size, len(self.roles.workers))[self.roles.workers.index(self.rank)]
            self.stage.warm_up(pieces(share, self.config.pieces))
        if self.speeds:
            self._emulate()

    def _stored(self, layers: Sequence[int]) -> list[checkpoint.LayerRecord]:
        assert self.job.resume and self.job.marker
        names = [self.model.layer_name(index) for index in layers]
        return list(checkpoint.read_layers(self.job.resume.checkpoints, self.job.marker, names))

    def _emulate(self) -> None:
        """The node that this rank is; each layer of each worker has draws of its own, as the simulator has it."""
        config, layers, speed = self.config, len(self.model.layers), self.speeds[self.rank]
        self.nanoseconds = UPDATE_FLOPS / speed
        if self.works:
            worker = self.roles.workers.index(self.rank)
            self.paces = [
                Pace(self.model, n, n + 1, worker * layers + n, speed, config.jitter, config.seed)
                for n in range(layers)
            ]
        if not (self.works and self.serves):  # beside a worker's layers updates cost it nothing
            self.paced = Paced(len(self.roles.workers) * layers + self.rank, config.jitter, config.seed)

    def connect(self) -> None:  # noqa: D102
        config, job, roles = self.config, self.job, self.roles
        if self.serves:
            peers = {*range(self.size)} if self.rank == 0 or self.works else {0, *roles.workers}
        else:
            peers = {0, *roles.servers}
        if not roles.servers:
            peers = {*range(self.size)} if self.rank == 0 else {0}
        self.places = self.comm.allgather((socket.gethostname(), os.getpid()))
        self.post = Post(self.net, peers, self.recorder)
        self.over = False
        self.post.on(post.OVER, self._over)
        self.post.on(post.DROP, self._drop)
        self.post.on(post.STOP, self._stop)
        crowded = self.crowded()
        self.patience = Patience(crowded)
        self.filter = make_filter(config.filter, job.dtype, config.topk)
        self.ship = self.comm.Dup()  # collective, though only servers talk there
        if self.serves:
            self._make_server()
        if self.rank == 0:
            self.ended: set[int] = set()
            self.post.on(post.END, lambda worker, message: self.ended.add(worker))
            self.coordinator = Coordinator(
                self.post, self.shares, range(self.size), self.writers, self, self.places,
                batch_size=config.batch_size, test_samples=job.info.n_test, start=job.start, period=config.local_steps,
                stop_request=self.stop_request,
            )  # fmt: skip
            self.feeder = Feeder(job)
        self.worker: Worker | None = None
        if self.stage:
            self._make_worker(crowded)
        self.glanced = clock()

    def _make_server(self) -> None:
        config, job = self.config, self.job
        optimizer = job.optimizer() if not self.local_steps else Optimizer("sgd")
        mine = [keys for keys in self.ranges if keys.server == self.rank]
        self.server = Server(
            self.net, mine, self.roles.workers, Consistency(config.bound, config.backup), optimizer, self.filter,
            self.post, self.recorder, rate=self.rate if not self.local_steps else lambda step: 1.0,
            batch_size=config.batch_size, start=job.start, threads=config.threads, paced=self.paced,
            nanoseconds=self.nanoseconds if self.paced else 0.0,
        )  # fmt: skip
        layers = sorted({segment.layer for keys in mine for segment in keys.segments})
        stored = dict(zip(layers, self._stored(layers), strict=True)) if job.marker else {}
        for layer in layers:
            self._fill(layer, stored.get(layer))
        self.keeper = Keeper(self.ship, self.model, self.ranges, self.server.served, job.optimizer().slots,
                             self.write_part, self.post, self._following, job.start)  # fmt: skip
        self.server.arrived = self._passed

    def _fill(self, layer: int, record: checkpoint.LayerRecord | None) -> None:
        """Give this server's part of a layer its start values, one layer at a time."""
        assert self.server
        kind = self.model.layers[layer]
        whole = np.zeros(kind.count, self.job.dtype)
        arrays = {}
        if record is None:
            kind.initialise(whole, self.config.seed, layer)
        else:
            kind.store(whole, record.parameters)
            for name, slot in record.slots.items():
                arrays[name] = np.zeros(kind.count, self.job.dtype)
                kind.store(arrays[name], slot)
        for served in self.server.served:
            for index, start, stop, at in served.keys.segments:
                if index == layer:
                    served.weights[at : at + stop - start] = whole[start:stop]
                    for name in served.slots.keys() & arrays.keys():
                        served.slots[name][at : at + stop - start] = arrays[name][start:stop]

    def _make_worker(self, crowded: bool) -> None:
        config, job, stage = self.config, self.job, self.stage
        assert stage
        parameters = Parameters(self.ranges, stage.states)
        exchange: Exchange
        if self.roles.servers:
            share = (lambda samples: samples / config.batch_size) if self.local_steps else None
            exchange = ServerLink(self.net, parameters, self.filter, self.post, self.recorder, self.server, share)
        else:
            exchange = AllReduce(self.net, parameters, job.optimizer(), self.rate, self.recorder, self.paced,
                                 self.nanoseconds if self.paced else 0.0)  # fmt: skip
        self.exchange = exchange
        self.worker = Worker(
            self.rank, stage, config, exchange, self.shares, self.post, self.recorder, Feeder(job), self.paces,
            self._serve if self.serves or self.rank == 0 else self._guard, start=job.start, total=self.table.total,
            every=self.every, crowded=crowded, local=self._local_step if self.local_steps else None,
            passed=self._made if not self.roles.servers else lambda step: None,
        )  # fmt: skip
        self.worker.beats = list(self.roles.servers)

    # ---- training -----------------------------------------------------------------------------------------------

    def drive(self) -> None:  # noqa: D102
        try:
            if self.worker:
                self._work(self.worker)
            self._finish()
        except RunFailure as failure:
            raise RunFailure(f"{failure}{self._last_set()}") from None

    def _last_set(self) -> str:
        if not self.job.folder:
            return ""
        root = self.job.folder.checkpoints
        whole = [
            step for step in checkpoint.steps(root) if (checkpoint.set_folder(root, step) / "COMMIT.json").exists()
        ]
        return f"; go on from step {whole[-1]} with: --resume {self.job.folder.path}" if whole else ""

    def _work(self, worker: Worker) -> None:
        try:
            worker.run()
        except Dropped:
            self._idle_for_good()
        except RunFailure:
            raise
        except Exception as error:
            if self.serves or not self.roles.servers:
                raise  # it cannot leave without taking parameters along
            text = "".join(traceback.format_exception(error))
            warn(f"takes no part any more: {type(error).__name__}: {error}\n{text.rstrip()}")
            self.post.tell(self.roles.servers, post.LEAVE)
            return
        self.post.tell({0, *self.roles.servers}, post.END)

    def _idle_for_good(self) -> None:
        """The others go on without this rank, and end it when they end."""
        warn("has been dropped by the others, and waits for the end of the job")
        while True:
            time.sleep(1)

    def _local_step(self, layer: int, step: int) -> None:
        """An optimizer step of this worker's own; slots begin anew after each exchange."""
        assert self.stage
        state, number = self.stage.states[layer], (step - self.job.start) % self.config.local_steps
        if not number:
            for slot in state.slots.values():
                slot.fill(0)
        optimizer = self.stage.optimizer
        optimizer.clip(state.gradient, 0.0)
        optimizer.update(state.flat, state.gradient, state.slots, self.rate(step), number + 1)
        state.layer.derive(state.parameters)

    def _serve(self) -> bool:
        """What this rank does beside working, or alone; whether anything has happened."""
        moved = False
        if self.server:
            moved = self.server.poll()
            assert self.keeper
            moved |= self.keeper.poll()
        now = clock()
        if now - self.glanced > _GLANCE:
            self.glanced = now
            self._glance(now)
        return moved

    def _guard(self) -> bool:
        now = clock()
        if now - self.glanced > _GLANCE:
            self.glanced = now
            self._glance(now)
        return False

    def _glance(self, now: int) -> None:
        """Is everybody there? Without a server nobody can go on, without a worker all others can."""
        for server in self.roles.servers:
            host, pid = self.places[server]
            if host == self.places[self.rank][0] and not mpi.runs(pid):
                raise RunFailure(f"the server on rank {server} of {host} (process {pid}) was killed")
        if self.coordinator and self.server and not self.works:
            limit = self.config.worker_timeout
            self.coordinator.look(self.server.silent(now, int(limit * 1e9)), limit)

    def _finish(self) -> None:
        """Serve until all have ended; then nothing is on its way any more."""
        self.patience.reset()
        since = clock()
        while not self.over:
            begin = clock()
            moved = self.post.poll()
            moved |= self._serve() if self.serves or self.rank == 0 else self._guard()
            if moved:
                if begin > since:
                    self.recorder.record("wait", since, begin, self.end)
                since = clock()
                self.patience.reset()
            elif self.rank == 0 and self._all_ended():
                assert self.coordinator
                self.coordinator.over()
                self.over = True
            else:
                self.patience.pause()
        while not self.post.idle():
            self.patience.pause()
        self.recorder.record("wait", since, clock(), self.end)
        with self.recorder.timed("wait", self.end):
            self._meet()
        if not self.lost:
            if self.worker and self.rank not in self.shares.gone:
                self.exchange.close()
            if self.server:
                self.server.close()
            self.post.close()

    def _all_ended(self) -> bool:
        """Every worker has its last weights, every report is in (rank 0)."""
        assert self.coordinator
        if not self.ended.issuperset(self.coordinator.alive) or not self.coordinator.idle():
            return False
        return not self.server or (self.server.finished() and self.keeper is not None and self.keeper.idle())

    @property
    def lost(self) -> set[int]:
        """Workers whose processes do not answer."""
        return self._lost

    _lost: set[int] = set()

    def _meet(self) -> None:
        """All who are there are done. From here on `comm` and `net` are theirs alone."""
        if self.lost:
            there = self.comm.group.Excl(sorted(self.lost))
            self.comm, self.net = self.comm.Create_group(there), self.net.Create_group(there, 1)
            mpi.lame(self.coordinator.fence if self.coordinator else None)
        self.comm.Barrier()

    # ---- what comes by post -------------------------------------------------------------------------------------

    def _over(self, sender: int, message: post.Message) -> None:
        self.over = True

    def _stop(self, sender: int, message: post.Message) -> None:
        self.end = min(self.end, int(message[1]))

    def _drop(self, sender: int, message: post.Message) -> None:
        worker, step, lost = int(message[1]), int(message[2]), bool(message[3])
        self.shares.drop(worker, step)
        if lost:
            self._lost = {*self._lost, worker}
            self.post.cut(worker)
        if self.server:
            self.server.drop(worker)
        if worker == self.rank and self.worker:
            self.worker.dropped = True

    # ---- sets ---------------------------------------------------------------------------------------------------

    def _following(self, step: int) -> int:
        every = self.config.checkpoint_every
        following = (step // every + 1) * every if every else -1
        return following if self.due(following) else -1

    def _passed(self, served: Any) -> None:
        assert self.keeper and self.server
        rule = self.server.rule
        self.keeper.passed(served, served.version if rule.bound == 0 else served.clock.least())

    def _made(self, step: int) -> None:
        """Without servers every rank writes its layers as it passes the step."""
        if self.due(step):
            assert self.worker
            self.worker._take_all()
            self.post.send(0, post.SAVED, step, float(self.write_part(step, self.records())))

    # ---- what the coordinator tells -----------------------------------------------------------------------------

    def stepped(self, step: int, loss: float, correct: float, idle: float) -> None:
        """A step is done by every worker (rank 0)."""
        assert self.reporter
        self.reporter.trained(step, loss, correct, idle, self.rate(step))

    def tested(self, step: int, loss: float, correct: float) -> None:
        """An evaluation is complete (rank 0)."""
        assert self.reporter
        self.reporter.tested(step, loss, correct, self.feeder.spread())

    def saved(self, step: int, whole: bool) -> None:
        """Every part of a set has been written, or not (rank 0)."""
        self.settle(step, whole)

    def say(self, text: str) -> None:
        """A line for whoever watches (rank 0)."""
        assert self.reporter
        self.reporter.say(text)

    # ---- what a launch asks for ---------------------------------------------------------------------------------

    def records(self) -> list[checkpoint.LayerRecord]:  # noqa: D102
        if self.keeper:
            return self.keeper.final()
        if self.roles.servers or not self.stage:
            return []
        mine = [state for state in self.stage.states if self.homes[state.index] == self.rank]
        return [checkpoint.LayerRecord.of(self.model, state.index, state.flat, state.slots) for state in mine]

    def describe(self) -> str:  # noqa: D102
        config, roles = self.config, self.roles
        words = [config.consistency + (f" (staleness {config.bound})" if config.bound > 0 else "")]
        if config.colocate:
            words.append("every rank serves and works")
        elif roles.servers:
            words.append(f"{len(roles.servers)} server{'s' * (len(roles.servers) > 1)}")
            words.append(f"{len(roles.workers)} worker{'s' * (len(roles.workers) > 1)}")
        words += [f"{config.backup} backup workers"] * bool(config.backup)
        words += [f"{config.local_steps} local steps"] * self.local_steps
        words += [f"filter {config.filter}"] * (config.filter != "none")
        largest = max(keys.size for keys in self.ranges) * self.job.dtype.itemsize
        words.append(f"{len(self.ranges)} ranges of up to {show_bytes(largest)}")
        speeds = ", ".join(f"{speed:g}" for speed in dict.fromkeys(self.speeds))
        words += [f"emulated nodes of {speeds} GFLOP/s"] * bool(speeds)
        return f"batch {config.batch_size}; " + ", ".join(words)

    def facts(self) -> dict[str, Any]:  # noqa: D102
        return {
            "role": self.roles.word(self.rank), "consistency": self.config.consistency, "bound": self.config.bound,
            "workers": list(self.roles.workers), "servers": list(self.roles.servers),
            "ranges": [[keys.server, keys.size, *map(list, keys.segments)] for keys in self.ranges],
        }  # fmt: skip

    def row(self) -> dict[str, Any]:  # noqa: D102
        role = self.roles.word(self.rank)
        served = sum(keys.size for keys in self.ranges if keys.server == self.rank) if self.roles.servers else 0
        shown = role + (", left" if self.rank in self.shares.gone else "")
        return {
            "role": role, "shown": shown, "parameters": self.model.parameters if self.works else served,
            "late": lateness([*self.paces, *([self.paced] if self.paced else [])]),
        }  # fmt: skip

    @property
    def step(self) -> int:  # noqa: D102
        return self.end

    @property
    def stop_signal(self) -> int:  # noqa: D102
        return self.coordinator.stop_signal if self.coordinator else 0


def _load(state: LayerState, record: checkpoint.LayerRecord) -> None:
    """Weights, and slots where the state has them, from a checkpoint."""
    state.layer.store(state.flat, record.parameters)
    for name, flat in state.slots.items():
        state.layer.store(flat, record.slots.get(name, {}))
