"""The ring's trainer, and `ringtmp.train`: from a configuration to trained weights, on a ring of any size."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ringtmp.checkpoint.writer import LayerArrays
from ringtmp.config.schema import RunConfig
from ringtmp.data.sampler import Sampler
from ringtmp.emulate.nodes import Pace, lateness
from ringtmp.errors import UserError
from ringtmp.nn.layer import Array
from ringtmp.nn.layer_state import LayerState
from ringtmp.nn.stage import Stage
from ringtmp.resilience.node_memory import StageReplica
from ringtmp.resilience.recovery import layout_of, room_for
from ringtmp.ring.engine import Engine, EngineSettings
from ringtmp.ring.layout import Layout, fastest_ranks, make_layout, resolve_auto
from ringtmp.ring.liveness import HungRanks
from ringtmp.ring.rebalance import Rebalancer
from ringtmp.ring.replicas import CopySettings
from ringtmp.ring.start_values import WEIGHTS_BEFORE, set_start_values
from ringtmp.run.job import Job
from ringtmp.run.launch import launch_from_python
from ringtmp.run.listener import RunListener
from ringtmp.run.result import Result
from ringtmp.run.session import Session
from ringtmp.run.timetable import Phase
from ringtmp.run.trainer import Traits
from ringtmp.trace.recorder import Recorder

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Prequest


def train(
    *, comm: "Intracomm | None" = None, data: Any = None, out: str | None = None, progress: bool = True, **settings: Any
) -> Result:
    """Train a network whose layers are divided over the ranks of `comm`. Collective over `comm`.

    On several ranks an exception on any one of them, other than `UserError`, is printed and ends all processes of the
    job: the other ranks would wait for this one for ever.

    Parameters
    ----------
    comm : Intracomm, optional
        The ring; by default the world (one rank in a notebook).
    data : str or tuple of arrays, optional
        The setting `data`, or (x, y) or (x, y, x_test, y_test) from Python.
    out : str, optional
        Where to make a run folder; by default nothing is written, unless `resume` names a run folder.
    progress : bool
        Whether rank 0 prints its progress.
    **settings
        Any field of `RunConfig`: model, epochs, batch_size, ...

    Returns
    -------
    Result

    Raises
    ------
    UserError
        Bad input; on every rank.
    """
    return launch_from_python(RingTrainer, comm, data, out, progress, settings)


class RingTrainer:
    """One launch of the ring on this rank (`ringtmp.run.trainer.Trainer`), and what the engine asks of it.

    Parameters
    ----------
    session : Session
    """

    traits = Traits("layers", uses_node_memory=True, survives_losses=True, side_by_side=True, ring=True)

    def __init__(self, session: Session) -> None:
        self.session, self.job = session, session.job
        self.rank, self.size = session.rank, session.size
        self.config, self.model = self.job.config, self.job.model
        self.table = self.job.timetable()
        self.writers: Sequence[int] = range(self.size)
        self.notes: list[str] = []
        self.rebalancings = 0  # times that the layers have been divided over the ranks again
        self.rebalancer: Rebalancer | None = None
        self.late: list[Pace] = []  # of stages before a rebalancing
        self.engine: Engine | None = None
        self.listener: RunListener | None = None  # on rank 0

    @staticmethod
    def check(config: RunConfig, ranks: int) -> None:
        """Raise `UserError` for settings with which a ring of `ranks` ranks cannot train (rank 0)."""
        if config.micro_batches > config.batch_size:
            raise UserError(
                f"batch_size {config.batch_size} is smaller than micro_batches {config.micro_batches}: "
                "each micro-batch needs at least one sample"
            )
        if ranks % config.rings:
            raise UserError(f"rings: {config.rings} rings side by side do not divide the {ranks} ranks evenly")
        if config.micro_batches > config.batch_size // config.rings:
            raise UserError(
                f"micro_batches: {config.micro_batches} exceeds the {config.batch_size // config.rings} samples of "
                f"each of {config.rings} rings"
            )

    @staticmethod
    def members(comm: "Intracomm", job: Job) -> list[int]:
        """Ranks that take part: all, or with `--allow-idle-ranks` those with which the ring is fastest. Collective."""
        return fastest_ranks(comm, job) if job.config.allow_idle_ranks else list(range(comm.size))

    def build(self) -> None:
        """Divide the layers over the ranks, and allocate this rank's stages. Collective."""
        if self.job.info.n_test < self.config.rings:
            raise UserError(
                f"rings: each of {self.config.rings} rings needs a test sample, the data has {self.job.info.n_test}"
            )
        chosen = resolve_auto(self.session.comm, self.job)
        self.config, self.table = self.job.config, self.job.timetable()
        self.layout = make_layout(self.session.comm, self.job)
        self.policy = self.layout.policy(self.rank)
        self.stages = self._stages()
        self.notes = [chosen] if chosen else []
        if self.config.mode == "ready" and self.layout.schedule.plan:
            self.notes.append(
                f"note: --schedule {self.config.schedule} is not used in --mode ready, which follows no plan"
            )

    def kernel_families(self) -> set[str]:
        """Kernels beside the model's: those of copies in the nodes' memory."""
        return {"keep"} if self.config.state_copies else set()

    def _stages(self, kept: dict[int, LayerState] | None = None) -> list[Stage]:
        return [
            Stage(
                self.model,
                first,
                last,
                self.job.dtype,
                self.job.optimizer(),
                self.table.rows,
                self.policy.room(c),
                self.config.threads,
                self.layout.recompute[c],
                kept,
            )
            for c, (first, last) in enumerate(self.layout.layers(self.rank))
        ]

    def load(self) -> None:
        """Set start values or stored ones, and run every kernel once."""
        self.stashed = set_start_values(self.session.comm, self.job, self.layout, self.stages)
        for stage in self.stages:
            stage.commit(self.job.start)
        self.sampler: Sampler | None = None
        if self.rank == 0:
            assert self.job.data
            self.sampler = Sampler(self.job.data, self.config.seed, self.config.batch_size)
        if self.config.balance == "auto" and self.size > 1:
            costs = self.job.own_costs(self.session.comm, self.table.rows, self.config.micro_batches)
            reporter = self.session.reporter
            say = reporter.say if reporter else None
            self.rebalancer = Rebalancer(self.session.comm, self, costs, say, self.session.probe)
        self._ready()

    def _ready(self) -> None:
        """Run every kernel of the stages once, and time W."""
        self.paces = self.layout.paces(self.rank)
        for c, stage in enumerate(self.stages):
            stage.warm_up(self.table.sizes, self.policy.window(c))
            if self.size > 1:  # alone there is no inbox to look at
                paced = [ns * self.table.rows / 1e9 for ns in self.paces[c].layers] if self.paces else []
                stage.cut(paced or stage.weight_seconds())

    @property
    def generation(self) -> int:
        """Generation of the copies of this rank's stages in the nodes' memory."""
        return self.session.copies_generation + self.rebalancings

    def connect(self) -> None:
        """Make the engine."""
        session = self.session
        self.hung_ranks = HungRanks(session.peers, self.rank, self.config.heartbeat_timeout)
        if self.sampler:
            assert session.reporter
            spread = self.sampler.spread if self.job.model.loss.gives_r2 else None
            self.listener = RunListener(session.reporter, session.checkpoints, self.job.rate, spread)
        self.connect_from(self.job.start)

    def connect_from(self, start: int) -> None:
        """Make an engine that continues after `start` updates. Collective."""
        config, session, copies = self.config, self.session, None
        if self.rebalancer:
            self.rebalancer.restart()
        if session.memory:
            depth = min(config.state_copies, self.size - 1)
            copies = CopySettings(self.sides, session.memory, session.nodes, depth, self.forget_older)
        self.engine = Engine(
            session.net,
            self.stages,
            self.table,
            self.policy,
            self,
            session.recorder,
            session.checkpoints,
            EngineSettings(
                start=start,
                lag=self.layout.schedule.lag,
                stashed=self.stashed,
                label_slots=self.layout.rooms(0)[0],
                w_group=self.layout.w_group,
                seed=config.seed,
                crowded=session.is_crowded(),
                synchronous_sends=config.sends == "synchronous",
                delay=config.delay,
                stall_timeout=config.stall_timeout,
                heartbeat_timeout=config.heartbeat_timeout,
            ),
            listener=self.listener,
            stop_request=session.stop_request,
            paces=self.paces,
            balance=self.rebalancer,
            across=self.job.across,
            copies=copies,
            probe=session.probe,
        )

    def train(self) -> None:
        """Run the engine to the end, through any rebalancing on the way. On return no message is on its way."""
        self._engine.run()
        while order := self._engine.rebalance:
            assert self.rebalancer
            self.rebalancer.execute(order)
            self._engine.run()
        with self.session.recorder.timed("wait", self.step):
            self.session.comm.Barrier()  # every rank has acted for the last time: no message is on its way
        self._engine.close()

    def disconnect(self) -> None:
        """Free the engine's requests. Collective."""
        self._engine.close()

    @property
    def recorder(self) -> Recorder:
        """This rank's recorder."""
        return self.session.recorder

    @property
    def keeps_copies(self) -> bool:
        """Whether stages are copied to other nodes."""
        return self.session.memory is not None

    @property
    def _engine(self) -> Engine:
        assert self.engine
        return self.engine

    def adopt(self, layout: Layout, held: dict[int, list[Array]], step: int) -> None:
        """Make the stages of `layout` from `held`: this rank's layers by index, parameters and slots. Collective."""
        if (layout.most, layout.recompute) != (self.layout.most, self.layout.recompute):
            self.policy = layout.policy(self.rank)  # otherwise the present one keeps what it has learned
        states = {state.index: state for state in self.states()}
        self.layout, self.stages = layout, []  # frees the memory of micro-batches
        self.stages = self._stages({index: state for index, state in states.items() if index in held})
        self.rebalancings += 1
        if self.session.memory:
            self.reserve()
            if self.session.probe:
                self.session.probe.at("housed", step)
        for state in self.states():
            for into, array in zip([state.flat, *state.slots.values()], held[state.index], strict=True):
                if into is not array:
                    into[...] = array
        for stage in self.stages:
            stage.refresh_cache()
            stage.commit(step)
        self.late += self.paces
        self._ready()

    def reserve(self) -> None:
        """Keep this rank's stages in the node's memory, in two versions. Collective."""
        memory = self.session.memory
        assert memory
        layouts = [
            layout_of(
                self.model,
                first,
                last,
                self.job.optimizer().slots,
                self.job.dtype.str,
                generation=self.generation,
                stage=c * self.size + self.rank,
                owner=self.rank,
            )
            for c, (first, last) in enumerate(self.layout.layers(self.rank))
        ]
        self.sides: list[tuple[StageReplica, StageReplica]] = room_for(self.session.comm, memory, layouts)
        for stage, sides in zip(self.stages, self.sides, strict=True):
            stage.house(sides, self._between if self.session.probe else None)

    def _between(self) -> None:
        """Tell the fault probe that an update is half done."""
        assert self.session.probe
        self.session.probe.at("U", self.step)

    def forget_older(self) -> None:
        """Remove copies of earlier generations from the node's memory: nothing can need them any more."""
        if self.session.memory:
            self.session.memory.forget(self.generation)

    def states(self) -> list[LayerState]:
        """Every layer of this rank, in the order of the chain."""
        return [state for stage in self.stages for state in stage.states]

    # ---- what the engine asks for -------------------------------------------------------------------------------

    def read(self, phase: Phase, number: int, x: Array, labels: Array) -> None:
        """Read micro-batch `number` of a phase into `x` and `labels` (rank 0)."""
        assert self.sampler
        first = phase.first_sample(number)
        if phase.training:
            self.sampler.train(phase.step, first, x, labels)
        else:
            self.sampler.test(first, x, labels)

    def save(self, step: int) -> None:
        """Have this rank's part of a checkpoint written if one is due after `step` updates."""
        checkpoints = self.session.checkpoints
        checkpoints.poll()
        if checkpoints.due(step):
            checkpoints.save(step, self.layers(), self._engine.poll_once)

    def rate(self, step: int) -> float:
        """Learning rate of `step`."""
        return self.job.rate(step)

    def requests(self) -> "list[Prequest]":
        """All persistent requests."""
        return self.engine.requests() if self.engine else []

    def hung(self, rank: int) -> None:
        """End a neighbour that gives no sign of life."""
        self.hung_ranks.end(rank)

    # ---- what a launch asks for ---------------------------------------------------------------------------------

    def layers(self) -> list[LayerArrays]:
        """This rank's layers; where weights lag by one update, those before it beside the slots."""
        layers = []
        for chunk in self._engine.chunks:
            before = chunk.versions.stashed_before() if self.layout.schedule.weights == "previous" else None
            for n, state in enumerate(chunk.stage.states):
                slots = state.slots | ({WEIGHTS_BEFORE: before[n]} if before else {})
                layers.append(LayerArrays(state.index, state.flat, slots))
        return layers

    def describe(self) -> str:
        """How the work is divided."""
        return f"batch {self.config.batch_size} in {self.config.micro_batches}; {self.layout.describe()}"

    def trace_facts(self) -> dict[str, Any]:
        """This rank's part, as its trace states it."""
        layout = self.layout
        return {
            "chunks": layout.chunks,
            "layers": layout.layers(self.rank),
            "mode": layout.mode,
            "schedule": layout.schedule.name if layout.mode == "strict" or not layout.schedule.synchronous else "",
        }

    def _expected(self) -> int:
        """Bytes that this rank needs at its peak, as the memory model has it."""
        layout = self.layout
        return layout.needs.rank(layout.layers(self.rank), layout.rooms(self.rank), layout.recompute).total

    def row(self) -> dict[str, Any]:
        """This rank's row of the table at the end."""
        layers = self.layout.layers(self.rank)
        return {
            "layers": layers,
            "shown": " ".join(f"{a}" if b == a + 1 else f"{a}-{b - 1}" for a, b in layers),
            "parameters": sum(state.flat.size for state in self.states()),
            "expected": self._expected(),
            "late": lateness(self.late + self.paces),
        }

    @property
    def step(self) -> int:
        """Updates made since the run's first step."""
        return self._engine.updates

    @property
    def stop_signal(self) -> int:
        """The signal that stopped the run, or 0 (rank 0)."""
        return self._engine.stop_signal
