"""`ps.train`: from a configuration to trained weights, with parameter servers or an all-reduce."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ps.batch_split import BatchSplit
from ps.checkpointing import layer_homes
from ps.membership import Membership
from ps.mirror import holder_of
from ps.node_memory import ReplicaPair, RestoredRanges, replica_layout, restore_ranges, servers_of
from ps.rank import RankLoop
from ps.roles import Roles, check
from ps.setup import NodeSpeed, RankSetup
from ringtmp.checkpoint import format as checkpoint
from ringtmp.checkpoint.writer import Held
from ringtmp.config.units import parse_bytes, show_bytes
from ringtmp.data.dataset import share_data
from ringtmp.emulate.node_speed import own_costs
from ringtmp.emulate.nodes import UPDATE_FLOPS, Course, Pace, Paced, lateness, parse_courses
from ringtmp.errors import UserError
from ringtmp.nn.layer import pieces
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.shards import key_ranges
from ringtmp.nn.stage import Stage
from ringtmp.resilience.node_memory import NodeMemory
from ringtmp.resilience.recovery import room_for
from ringtmp.run.job import Feeder
from ringtmp.run.launch import Launch
from ringtmp.run.modes import train_with
from ringtmp.run.result import Result

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


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


class ServerLaunch(Launch):
    """One launch on a rank that serves, works, or both."""

    heading = "role"
    recalls = True
    check = staticmethod(check)

    def build(self) -> None:
        config, job = self.config, self.job
        self.roles = Roles.of(config, self.size)
        self.serves, self.works = self.rank in self.roles.servers, self.rank in self.roles.workers
        counts, item = [layer.count for layer in self.model.layers], job.dtype.itemsize
        if not sum(counts):
            raise UserError("model: has no parameters; there is nothing to train")
        most = parse_bytes(config.message_size, "message_size") // item
        self.ranges = key_ranges(counts, most, max(1, len(self.roles.servers)), config.colocate)
        dealt = [layer % self.size for layer in range(len(counts))]
        self.homes = layer_homes(self.ranges, len(counts)) if self.roles.servers else dealt
        self.writers = sorted({*self.homes})
        self.courses = parse_courses(config.node_speed, self.size) if config.node_speed else []
        job.data = share_data(self.comm, job.data, job.info, config.data, job.dtype, config.test_fraction)
        self.membership = Membership(self.roles.workers)
        self.batch_split = BatchSplit(self.membership, self._speeds())
        self.stage: Stage | None = None
        self.speed = NodeSpeed()
        self.replica_holders: dict[int, int] = {}
        self.replica_pairs: dict[int, ReplicaPair] = {}
        if self.works:
            updates = config.local_steps > 1 or not self.roles.servers
            self.stage = Stage(
                self.model,
                0,
                len(counts),
                job.dtype,
                job.optimizer() if updates else Optimizer("sgd"),
                pieces(self._samples(), config.worker_micro_batches)[0],
                1,
                config.threads,
            )

    def _samples(self) -> int:
        """Samples that this worker has of each batch while all are there."""
        return self.batch_split.part(self.rank, 0, self.config.batch_size)[1]

    def _speeds(self) -> list[float]:
        """Samples a second of each worker, where shares are to be in proportion to that."""
        if self.config.batch_split == "even":
            return []
        rows = max(1, self.config.batch_size // len(self.roles.workers))
        seconds = self.comm.allgather(sum(own_costs(self.comm, self.job, rows, 1)))
        return [1.0 / seconds[worker] for worker in self.roles.workers]

    def families(self) -> set[str]:
        return {"serve", "keep"} if self.config.state_copies else {"serve"}

    def load(self) -> None:
        self.restored: RestoredRanges = {}
        if self.job.recalled:
            ranges = self.ranges if self.roles.servers else []
            self.restored = restore_ranges(
                self.comm, self.job.recalled, ranges, self.server_slots, self.job.dtype, self.stage
            )
        if self.stage:
            if self.job.marker is None:
                self.stage.initialise(self.config.seed)
            elif self.job.recalled:
                self.stage.derive()
            else:
                stored = self.stored(range(len(self.model.layers)))
                for state, record in zip(self.stage.states, stored, strict=True):
                    state.layer.store(state.flat, record.parameters)
                    for name, flat in state.slots.items():
                        state.layer.store(flat, record.slots.get(name, {}))
                self.stage.derive()
            self.stage.warm_up(pieces(self._samples(), self.config.worker_micro_batches))
        if self.courses:
            self.speed = self._emulate(self.courses[self.rank])

    def house(self, memory: NodeMemory) -> None:
        """Make room in the node's memory for this server's versions, and for those that it mirrors. Collective."""
        servers, workers = self.roles.servers, self.roles.workers
        self.replica_holders = {
            server: holder_of(server, servers, workers, self.nodes) for server in servers_of(self.ranges)
        }
        mine = [server for server, holder in self.replica_holders.items() if self.rank in (server, holder)]
        shapes = [
            replica_layout(self.model, self.ranges, server, self.server_slots, self.job.dtype.str, self.generation)
            for server in mine
        ]
        self.replica_pairs = dict(zip(mine, room_for(self.comm, memory, shapes), strict=True))

    @property
    def server_slots(self) -> tuple[str, ...]:
        """Slots that servers keep; none with local steps, where workers' own optimizers are at work."""
        return () if self.config.local_steps > 1 else self.job.optimizer().slots

    def stored(self, layers: Sequence[int]) -> list[checkpoint.LayerRecord]:
        """Some layers of the checkpoint that is resumed."""
        assert self.job.resume and self.job.marker
        names = [self.model.layer_name(index) for index in layers]
        return list(checkpoint.read_layers(self.job.resume.checkpoints, self.job.marker, names))

    def _emulate(self, course: Course) -> NodeSpeed:
        """The node that this rank is; each layer of each worker has draws of its own, as the simulator has it."""
        config, layers, stages = self.config, len(self.model.layers), len(self.roles.workers) * len(self.model.layers)
        paces: list[Pace] = []
        if self.works:
            worker = self.roles.workers.index(self.rank)
            paces = [
                Pace(self.model, n, n + 1, worker * layers + n, course, config.jitter, config.seed)
                for n in range(layers)
            ]
        if self.works and self.serves:  # beside a worker's layers updates cost it nothing
            return NodeSpeed(paces)
        return NodeSpeed(
            paces, Paced(stages + self.rank, config.jitter, config.seed, course), UPDATE_FLOPS / course.first
        )

    def connect(self) -> None:
        setup = RankSetup(
            comm=self.comm,
            net=self.net,
            job=self.job,
            roles=self.roles,
            membership=self.membership,
            batch_split=self.batch_split,
            ranges=self.ranges,
            stage=self.stage,
            writers=self.writers,
            checkpoints=self.sets,
            listener=self,
            recorder=self.recorder,
            total=self.table.total,
            eval_every=self.table.every,
            rate=self.rate,
            speed=self.speed,
            crowded=self.crowded(),
            restored=self.restored,
            read_layers=self.stored,
            own_layers=self.mine,
            replica_holders=self.replica_holders,
            replica_pairs=self.replica_pairs,
            forget_older=self.forget_older,
            stop_request=self.stop_request,
            probe=self.probe,
        )
        self.rank_loop = RankLoop(setup)
        self.feeder = Feeder(self.job) if self.rank == 0 else None

    def drive(self) -> None:
        self.comm, self.net = self.rank_loop.run()

    # ---- what the coordinator tells -----------------------------------------------------------------------------

    def step_done(self, step: int, loss: float, correct: float, idle: float) -> None:
        """A step is done by every worker (rank 0)."""
        assert self.reporter
        self.reporter.trained(step, loss, correct, idle, self.rate(step))

    def test_done(self, step: int, loss: float, correct: float) -> None:
        """An evaluation is complete (rank 0)."""
        assert self.reporter and self.feeder
        self.reporter.tested(step, loss, correct, self.feeder.spread())

    def parts_done(self, step: int, whole: bool, cost: float) -> None:
        """Every part of a set has been written, or not (rank 0)."""
        self.sets.settle(step, whole, cost)

    def wants_checkpoint(self, step: int) -> bool:
        """Whether a set after `step` updates is to be ordered now (rank 0)."""
        return self.sets.wanted(step)

    def say(self, text: str) -> None:
        """A line for whoever watches (rank 0)."""
        assert self.reporter
        self.reporter.say(text)

    # ---- what a launch asks for ---------------------------------------------------------------------------------

    def held(self) -> list[Held]:
        if self.rank_loop.collector:
            return self.rank_loop.collector.final()
        if self.roles.servers or not self.stage:
            return []
        return self.mine()

    def mine(self) -> list[Held]:
        """The layers that this worker writes where there are no servers."""
        assert self.stage
        states = self.stage.states
        return [(each.index, each.flat, each.slots) for each in states if self.homes[each.index] == self.rank]

    def describe(self) -> str:
        config, roles = self.config, self.roles
        words = [config.consistency + (f" (staleness {config.bound})" if config.bound > 0 else "")]
        if config.colocate:
            words.append("every rank serves and works")
        elif roles.servers:
            words.append(f"{len(roles.servers)} server{'s' * (len(roles.servers) > 1)}")
            words.append(f"{len(roles.workers)} worker{'s' * (len(roles.workers) > 1)}")
        words += [f"{config.backup} backup workers"] * bool(config.backup)
        words += [f"{config.local_steps} local steps"] * (config.local_steps > 1)
        words += [f"compression {config.compression}"] * (config.compression != "none")
        largest = max(keys.size for keys in self.ranges) * self.job.dtype.itemsize
        words.append(f"{len(self.ranges)} ranges of up to {show_bytes(largest)}")
        speeds = ", ".join(f"{course.first:g}" for course in dict.fromkeys(self.courses))
        words += [f"emulated nodes of {speeds} GFLOP/s"] * bool(speeds)
        return f"batch {config.batch_size}; " + ", ".join(words)

    def facts(self) -> dict[str, Any]:
        return {
            "role": self.roles.word(self.rank),
            "consistency": self.config.consistency,
            "bound": self.config.bound,
            "workers": list(self.roles.workers),
            "servers": list(self.roles.servers),
            "ranges": [[keys.server, keys.size, *map(list, keys.segments)] for keys in self.ranges],
        }

    def row(self) -> dict[str, Any]:
        role = self.roles.word(self.rank)
        served = sum(keys.size for keys in self.ranges if keys.server == self.rank) if self.roles.servers else 0
        shown = role + (", left" if self.works and self.membership.loss(self.rank) is not None else "")
        return {
            "role": role,
            "shown": shown,
            "parameters": self.model.parameters if self.works else served,
            "late": lateness(self.speed.paces),
        }

    @property
    def step(self) -> int:
        return self.rank_loop.end

    @property
    def stop_signal(self) -> int:
        return self.rank_loop.stop_signal
