"""The servers' trainer, and `ps.train`: from a configuration to trained weights, with servers or an all-reduce."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ringtmp.checkpoint import format as checkpoint
from ringtmp.checkpoint.loading import load_layers
from ringtmp.checkpoint.writer import LayerArrays
from ringtmp.config.schema import RunConfig
from ringtmp.config.units import parse_bytes, show_bytes
from ringtmp.data.dataset import share_data
from ringtmp.data.sampler import Sampler
from ringtmp.emulate.nodes import UPDATE_FLOPS, Course, Pace, Paced, lateness, parse_courses
from ringtmp.errors import UserError
from ringtmp.nn.layer import pieces
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.shards import key_ranges
from ringtmp.nn.stage import Stage
from ringtmp.ps.batch_split import BatchSplit
from ringtmp.ps.membership import Membership
from ringtmp.ps.rank import RankLoop
from ringtmp.ps.roles import Roles, check
from ringtmp.ps.serving.checkpointing import layer_homes
from ringtmp.ps.serving.mirror import holder_of
from ringtmp.ps.serving.node_memory import ReplicaPair, RestoredRanges, replica_layout, restore_ranges, servers_of
from ringtmp.ps.setup import NodeSpeed, RankSetup
from ringtmp.resilience.recovery import room_for
from ringtmp.run.job import Job
from ringtmp.run.launch import launch_from_python
from ringtmp.run.listener import RunListener
from ringtmp.run.result import Result
from ringtmp.run.session import Session
from ringtmp.run.trainer import Traits

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Prequest


def train(
    *, comm: "Intracomm | None" = None, data: Any = None, out: str | None = None, progress: bool = True, **settings: Any
) -> Result:
    """Train with parameter servers, or with an all-reduce, on the ranks of `comm`. Collective over `comm`.

    Parameters and result are those of `ringtmp.train`; settings of the ring alone are ignored.

    Parameters
    ----------
    comm : Intracomm, optional
        By default the world. Its first `servers` ranks serve, unless settings say otherwise.
    data : str or tuple of arrays, optional
        Value of `--data`, or (x, y) or (x, y, x_test, y_test) from Python (those of rank 0 count).
    out : str, optional
        Folder in which to make a run folder; by default nothing is written, unless `resume` names a run folder.
    progress : bool
        Whether rank 0 prints its progress.
    **settings
        Any field of `RunConfig`: consistency, staleness, servers, ...

    Raises
    ------
    UserError
        Bad input; on every rank.
    """
    return launch_from_python(ServerTrainer, comm, data, out, progress, settings)


class ServerTrainer:
    """One launch on a rank that serves, works, or both (`ringtmp.run.trainer.Trainer`).

    Parameters
    ----------
    session : Session
        The session of this rank.
    """

    traits = Traits("role", uses_node_memory=True, survives_losses=False, side_by_side=False, ring=False)

    def __init__(self, session: Session) -> None:
        self.session, self.job, self.config, self.model = session, session.job, session.job.config, session.job.model
        self.rank, self.size = session.rank, session.size
        self.table = self.job.timetable()
        self.notes: list[str] = []
        self.writers: Sequence[int] = range(self.size)

    @staticmethod
    def check(config: RunConfig, ranks: int) -> None:
        """Raise `UserError` for settings in `config` with which `ranks` ranks cannot train (rank 0)."""
        check(config, ranks)

    @staticmethod
    def members(comm: "Intracomm", job: Job) -> list[int]:
        """Ranks of `comm` that take part in `job`: all."""
        return list(range(comm.size))

    def build(self) -> None:
        """Divide parameters over servers and batches over workers, and allocate a worker's layers. Collective."""
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
        job.data = share_data(self.session.comm, job.data, job.info, config.data, job.dtype, config.test_fraction)
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
        """Samples that this worker has of each batch while all workers take part."""
        return self.batch_split.part(self.rank, 0, self.config.batch_size)[1]

    def _speeds(self) -> list[float]:
        """Samples per second of each worker, if batches are divided in proportion to that. Collective."""
        if self.config.batch_split == "even":
            return []
        rows = max(1, self.config.batch_size // len(self.roles.workers))
        seconds = self.session.comm.allgather(sum(self.job.own_costs(self.session.comm, rows, 1)))
        return [1.0 / seconds[worker] for worker in self.roles.workers]

    def kernel_families(self) -> set[str]:
        """Kernels beside the model's: those of servers, and of copies in the nodes' memory."""
        return {"serve", "keep"} if self.config.state_copies else {"serve"}

    def load(self) -> None:
        """Set start values or stored ones, and run every kernel once."""
        self.restored: RestoredRanges = {}
        if self.job.recalled:
            ranges = self.ranges if self.roles.servers else []
            self.restored = restore_ranges(
                self.session.comm, self.job.recalled, ranges, self.server_slots, self.job.dtype, self.stage
            )
        if self.stage:
            if self.job.marker is None:
                self.stage.initialise(self.config.seed)
            elif self.job.recalled:
                self.stage.refresh_cache()
            else:
                assert self.job.resume
                load_layers(self.job.resume.checkpoints, self.job.marker, self.model, self.stage.states)
                self.stage.refresh_cache()
            self.stage.warm_up(pieces(self._samples(), self.config.worker_micro_batches))
        if self.courses:
            self.speed = self._emulate(self.courses[self.rank])

    def reserve(self) -> None:
        """Allocate node memory for this server's copies, and for those of others that this rank holds. Collective."""
        servers, workers, memory = self.roles.servers, self.roles.workers, self.session.memory
        assert memory
        self.replica_holders = {
            server: holder_of(server, servers, workers, self.session.nodes) for server in servers_of(self.ranges)
        }
        mine = [server for server, holder in self.replica_holders.items() if self.rank in (server, holder)]
        shapes = [
            replica_layout(
                self.model, self.ranges, server, self.server_slots, self.job.dtype.str, self.session.copies_generation
            )
            for server in mine
        ]
        self.replica_pairs = dict(zip(mine, room_for(self.session.comm, memory, shapes), strict=True))

    @property
    def server_slots(self) -> tuple[str, ...]:
        """Slots that servers keep; none with local steps, where workers update with their own optimizers."""
        return () if self.config.local_steps > 1 else self.job.optimizer().slots

    def stored(self, layers: Sequence[int]) -> list[checkpoint.LayerRecord]:
        """Layers with the numbers `layers` from the checkpoint that is resumed."""
        assert self.job.resume and self.job.marker
        names = [self.model.layer_name(index) for index in layers]
        return list(checkpoint.read_layers(self.job.resume.checkpoints, self.job.marker, names))

    def _emulate(self, course: Course) -> NodeSpeed:
        """The node that this rank emulates; each layer of each worker has its own random numbers, as in simulation."""
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
        updates = Paced(stages + self.rank, config.jitter, config.seed, course)
        return NodeSpeed(paces, updates, UPDATE_FLOPS / course.first)

    def connect(self) -> None:
        """Make the server, worker and coordinator parts of this rank."""
        session, listener = self.session, None
        if session.reporter:
            assert self.job.data
            sampler = Sampler(self.job.data, self.config.seed, self.config.batch_size)
            spread = sampler.spread if self.job.model.loss.gives_r2 else None
            listener = RunListener(session.reporter, session.checkpoints, self.job.rate, spread)
        setup = RankSetup(
            session=session,
            table=self.table,
            roles=self.roles,
            membership=self.membership,
            batch_split=self.batch_split,
            ranges=self.ranges,
            stage=self.stage,
            writers=self.writers,
            listener=listener,
            speed=self.speed,
            restored=self.restored,
            read_layers=self.stored,
            own_layers=self.mine,
            replica_holders=self.replica_holders,
            replica_pairs=self.replica_pairs,
        )
        self.rank_loop = RankLoop(setup)

    def train(self) -> None:
        """Train. On return no message is on its way."""
        self.session.comm, self.session.net = self.rank_loop.run()

    def requests(self) -> "list[Prequest]":
        """None: this trainer does not survive losses within a job."""
        return []

    # ---- what a launch asks for ---------------------------------------------------------------------------------

    def layers(self) -> list[LayerArrays]:
        """The layers that this rank writes and digests, as they are now. Collective over the servers."""
        if self.rank_loop.collector:
            return self.rank_loop.collector.final()
        if self.roles.servers or not self.stage:
            return []
        return self.mine()

    def mine(self) -> list[LayerArrays]:
        """The layers that this worker writes if no rank serves."""
        assert self.stage
        states = self.stage.states
        mine = [state for state in states if self.homes[state.index] == self.rank]
        return [LayerArrays(state.index, state.flat, state.slots) for state in mine]

    def describe(self) -> str:
        """How the work is divided."""
        config, roles = self.config, self.roles
        words = [config.consistency + (f" (staleness {config.bound})" if config.bound > 0 else "")]
        if config.colocate:
            words.append("colocated servers")
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

    def trace_facts(self) -> dict[str, Any]:
        """This rank's part, as its trace states it."""
        return {
            "role": self.roles.word(self.rank),
            "consistency": self.config.consistency,
            "bound": self.config.bound,
            "workers": list(self.roles.workers),
            "servers": list(self.roles.servers),
            "ranges": [[keys.server, keys.size, *map(list, keys.segments)] for keys in self.ranges],
        }

    def row(self) -> dict[str, Any]:
        """This rank's row of the table at the end."""
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
        """Steps of the run from its first one: all, or those before a stop; made once `train` has returned."""
        return self.rank_loop.end

    @property
    def stop_signal(self) -> int:
        """The signal that stopped the run, or 0 (rank 0)."""
        return self.rank_loop.stop_signal
