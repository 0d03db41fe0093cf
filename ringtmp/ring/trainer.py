"""`ringtmp.train`: from a configuration to trained weights, on a ring of any size."""

import os
import signal
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ringtmp.checkpoint import format as checkpoint
from ringtmp.checkpoint.writer import Held
from ringtmp.comm import ulfm
from ringtmp.comm.mpi import runs, warn
from ringtmp.config.schema import RunConfig
from ringtmp.emulate.node_speed import own_costs
from ringtmp.emulate.nodes import Pace, lateness
from ringtmp.errors import RunFailure, UserError
from ringtmp.nn.layer import Array
from ringtmp.nn.stage import LayerState, Stage
from ringtmp.resilience.node_memory import Copy, NodeMemory
from ringtmp.resilience.recovery import Recalled, fetch, room_for, shape_of
from ringtmp.ring.data_parallel import CrossRingSums, RingLeaders
from ringtmp.ring.engine import Engine
from ringtmp.ring.layout import Layout, make_layout, members, resolve_auto
from ringtmp.ring.load_balance import Order, owners
from ringtmp.ring.rebalance import Rebalancer
from ringtmp.ring.replicas import Replicas
from ringtmp.ring.tokens import TEST, TOKEN
from ringtmp.run.job import Feeder, Job
from ringtmp.run.launch import Launch
from ringtmp.run.modes import train_with
from ringtmp.run.result import Result
from ringtmp.run.timetable import Phase

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Prequest


_BEFORE = "weights-before"  # slot of a checkpoint that holds the weights of the step before (2BW)


def train(
    *, comm: "Intracomm | None" = None, data: Any = None, out: str | None = None, progress: bool = True, **settings: Any
) -> Result:
    """Train a network whose layers are dealt over the ranks of `comm`. Collective over `comm`.

    On several ranks an exception on any one of them, other than `UserError`, is printed and ends all processes of the
    job: the other ranks would wait for this one for ever.

    Parameters
    ----------
    comm : Intracomm, optional
        The ring; by default the world (one rank in a notebook).
    data : str or tuple of arrays, optional
        As `--data`, or (x, y) or (x, y, x_test, y_test) from Python.
    out : str, optional
        Where to make a run folder; by default nothing is written, unless `resume` names a folder to go on in.
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
    return train_with(RingLaunch, comm, data, out, progress, settings)


class RingLaunch(Launch):
    """One launch on a rank of the ring; also the engine's surroundings."""

    recalls = heals = rings = True

    @staticmethod
    def check(config: RunConfig, ranks: int) -> None:
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
        return members(comm, job) if job.config.allow_idle_ranks else list(range(comm.size))

    def build(self) -> None:
        if self.job.info.n_test < self.config.rings:
            raise UserError(
                f"rings: each of {self.config.rings} rings needs a test sample, the data has {self.job.info.n_test}"
            )
        chosen = resolve_auto(self.comm, self.job)
        self.config, self.table = self.job.config, self.job.timetable()
        self.layout = make_layout(self.comm, self.job)
        self.policy = self.layout.policy(self.rank)
        self.stages = self._stages()
        self.membership = 0  # how often the layers have been dealt anew
        self.recut: Rebalancer | None = None
        self.late: list[Pace] = []  # of stages that are no more
        self.notes = [chosen] if chosen else []
        if self.config.mode == "ready" and self.config.schedule not in (None, "auto", "2bw"):
            self.notes.append(
                f"note: --schedule {self.config.schedule} is not used in --mode ready, which follows no plan"
            )

    def families(self) -> set[str]:
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
                self.layout.again[c],
                kept,
            )
            for c, (first, last) in enumerate(self.layout.layers(self.rank))
        ]

    def load(self) -> None:
        self.missing: set[int] = set()  # ranks that have ended without MPI's telling so yet
        self.stashed = self._start_values()
        for stage in self.stages:
            stage.commit(self.job.start)
        self.feeder = Feeder(self.job) if self.rank == 0 else None
        if self.config.balance == "auto" and self.size > 1:
            self.recut = Rebalancer(
                self,
                own_costs(
                    self.comm,
                    self.job.model,
                    self.job.dtype,
                    self.job.optimizer(),
                    self.job.pace,
                    self.table.rows,
                    self.config.micro_batches,
                ),
            )
        self._ready()

    def _ready(self) -> None:
        """Run every kernel of the stages once, and find out how long W takes."""
        self.paces = self.layout.paces(self.rank)
        for c, stage in enumerate(self.stages):
            stage.warm_up(self.table.sizes, self.policy.window(c))
            if self.size > 1:  # alone there is no inbox to look at
                paced = [ns * self.table.rows / 1e9 for ns in self.paces[c].layers] if self.paces else []
                stage.cut(paced or stage.weight_seconds())

    @property
    def generation(self) -> int:
        return super().generation + self.membership

    def connect(self) -> None:
        self.connect_from(self.job.start)

    def connect_from(self, start: int) -> None:
        """What talks and trains, after so many updates."""
        config = self.config
        if self.recut:
            self.recut.meter.restart(self._computed())
        self.engine = Engine(
            self.net,
            self.stages,
            self.table,
            self.policy,
            self,
            self.recorder,
            start=start,
            w_group=self.layout.w_group,
            seed=config.seed,
            crowded=self.crowded(),
            synchronous=config.sends == "synchronous",
            delay=config.delay,
            stall_timeout=config.stall_timeout,
            lag=self.layout.lag,
            stashed=self.stashed,
            paces=self.paces,
            stop_request=self.stop_request,
            heartbeat=config.heartbeat_timeout,
            probe=self.probe,
            rings=config.rings,
            leads=self.job.ring == 0,
        )
        if self.job.across:
            self.engine.across = CrossRingSums(self.job.across, self.engine.chunks, self.recorder)
            if self.rank == 0:
                self.engine.sisters = RingLeaders(self.job.across, self._of_all_rings, self._stop)
        self.sets.meanwhile = lambda: self.engine.look()
        if self.memory:
            self.engine.replicas = Replicas(
                self.net,
                self.engine.back,
                self.sides,
                self.engine.chunks,
                self.memory,
                self.nodes,
                min(config.state_copies, self.size - 1),
                start,
                self.recorder,
                self.forget_older,
                self.probe,
            )

    def drive(self) -> None:
        self.engine.run()
        while order := self.engine.tokens.cut:
            assert self.recut
            self.recut.obey(order)
            self.engine.run()
        with self.recorder.timed("wait", self.engine.updates):
            self.comm.Barrier()  # the others' last actions; then nothing is on its way any more
        self.engine.close()

    def go_by(self, layout: Layout, held: dict[int, list[Array]], step: int) -> None:
        """Make the stages of another layout from layers that are here: by index, parameters and slots as they are."""
        if (layout.most, layout.again) != (self.layout.most, self.layout.again):
            self.policy = layout.policy(self.rank)  # else it keeps what it has learned
        states = {state.index: state for state in self.states()}
        self.layout, self.stages = layout, []  # gives back what the micro-batches took
        self.stages = self._stages({index: state for index, state in states.items() if index in held})
        self.membership += 1
        if self.memory:
            self.house(self.memory)
            if self.probe:
                self.probe.at("housed", step)
        for state in self.states():
            for into, array in zip([state.flat, *state.slots.values()], held[state.index], strict=True):
                if into is not array:
                    into[...] = array
        for stage in self.stages:
            stage.derive()
            stage.commit(step)
        self.late += self.paces
        self._ready()

    def house(self, memory: NodeMemory) -> None:
        """Keep this rank's stages in the node's memory, in two versions."""
        shapes = [
            shape_of(
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
        self.sides: list[tuple[Copy, Copy]] = room_for(self.comm, memory, shapes)
        for stage, sides in zip(self.stages, self.sides, strict=True):
            stage.house(sides)
            stage.between = self._between if self.probe else None

    def _between(self) -> None:
        """In the middle of an update."""
        assert self.probe
        self.probe.at("U", self.engine.updates)

    def _start_values(self) -> bool:
        """Weights and slots to begin with; whether those of the step before came with them (2BW) and are stashed."""
        if self.job.marker is None:
            for stage in self.stages:
                stage.initialise(self.config.seed)
            return False
        if self.job.recalled:
            self._recall(self.job.recalled)
            return False
        assert self.job.resume
        states = {self.model.layer_name(state.index): state for state in self.states()}
        before: dict[str, dict[str, Array]] = {}
        for record in checkpoint.read_layers(self.job.resume.checkpoints, self.job.marker, states):
            state = states[record.name]
            state.layer.store(state.flat, record.parameters)
            for slot, flat in state.slots.items():
                state.layer.store(flat, record.slots.get(slot, {}))
            if self.layout.lag == 1 and _BEFORE in record.slots:
                before[record.name] = record.slots[_BEFORE]
        stash = self.layout.lag == 1 and len(before) == len(states)
        if stash:
            self._stash(before)
        for stage in self.stages:
            stage.derive()
        return stash

    def _stash(self, before: dict[str, dict[str, Array]]) -> None:
        """Put the weights of the step before into the stages' first stash."""
        for stage in self.stages:
            now = [state.flat.copy() for state in stage.states]
            for state in stage.states:
                state.layer.store(state.flat, before[self.model.layer_name(state.index)])
            stage.derive()
            stage.stash(0)
            for state, flat in zip(stage.states, now, strict=True):
                state.flat[...] = flat

    def _recall(self, recalled: Recalled) -> None:
        """Take this rank's layers from whichever node remembers them, and give out those that are remembered here."""
        ranks = [stage % self.size for stage in owners(self.layout.ends)]
        states = {state.index: state for state in self.states()}
        fetch(self.comm, recalled, ranks, lambda index: (states[index].flat, states[index].slots))
        for stage in self.stages:
            stage.derive()

    def states(self) -> list[LayerState]:
        """Every layer of this rank, in the order of the chain."""
        return [state for stage in self.stages for state in stage.states]

    # ---- what the engine asks for -------------------------------------------------------------------------------

    def read(self, phase: Phase, number: int, x: Array, labels: Array) -> None:
        """Fill in a micro-batch (rank 0)."""
        assert self.feeder
        first = phase.first_sample(number)
        if phase.training:
            self.feeder.train(phase.step, first, x, labels)
        else:
            self.feeder.test(first, x, labels)

    def save(self, step: int) -> None:
        """Have this rank's part of a set written if one is due after `step` updates."""
        self.sets.poll()
        if self.sets.due(step):
            self.sets.save(step, self.held())

    def written(self) -> tuple[int, float]:
        """Step of the newest set whose part this rank has finished, and the seconds for which it was held up."""
        return self.sets.newest, self.sets.cost

    def wants_set(self, step: int) -> bool:
        """Whether a set after `step` updates is to be ordered now (rank 0)."""
        return self.sets.wanted(step)

    def ordered(self, step: int, made: int) -> None:
        """A set after `step` updates is ordered, of which so many are `made` here."""
        self.sets.ordered(step, made)

    def _computed(self) -> int:
        """Nanoseconds that this rank has spent on F, I, W and U."""
        return sum(self.recorder.totals[kind] for kind in "FIWU")

    def stepped(self, step: int) -> None:
        """This rank has made all its updates of a step."""
        if self.recut:
            self.recut.meter.stepped(self._computed())

    def busy(self) -> float:
        """How long this rank computes in a step, in nanoseconds."""
        return self.recut.meter.busy if self.recut else 0.0

    def weighed(self, step: int, mean: float, most: float) -> Order | None:
        """So many steps are done everywhere (rank 0): whether the ring is to stop for a new cut."""
        return self.recut.governor.stepped(step, mean, most) if self.recut else None

    def trained(self, step: int, loss: float, correct: float, idle: float, written: int, cost: float) -> None:
        """A step is done on every rank, and each part of a set up to that of step `written` (rank 0)."""
        self.idle = idle
        self.sets.settle_up_to(written, cost)
        self._report(TOKEN, step, loss, correct)

    def tested(self, step: int, loss: float, correct: float) -> None:
        """An evaluation is complete (rank 0)."""
        self._report(TEST, step, loss, correct)

    def _report(self, kind: int, step: int, loss: float, correct: float) -> None:
        """A step or a test of this ring is complete (rank 0)."""
        signal = self.engine.tokens.stop_signal
        if self.engine.sisters:
            self.engine.sisters.report(kind, step, loss, correct, signal)
        else:
            self._of_all_rings(kind, step, loss, correct, signal)

    def _of_all_rings(self, kind: float, step: int, loss: float, correct: float, signal: int) -> None:
        """The same of all rings together."""
        assert self.reporter and self.feeder
        self.engine.tokens.stop_signal = self.engine.tokens.stop_signal or signal
        if kind == TOKEN:
            self.reporter.trained(step, loss, correct, self.idle, self.rate(step))
        else:
            self.reporter.tested(step, loss, correct, self.feeder.spread())

    def stopped(self, index: int, signal: int) -> None:
        """The phases from `index` on are left out (rank 0)."""
        if self.engine.sisters and self.job.ring == 0:
            self.engine.sisters.order(index, signal)

    def _stop(self, index: int, signal: int) -> None:
        """The first ring says so."""
        self.engine.tokens.stop_signal = signal
        self.engine.tokens.order_stop(index)

    def requests(self) -> "list[Prequest]":
        """All persistent requests."""
        engine = getattr(self, "engine", None)
        return engine.requests() if engine else []

    def hung(self, rank: int) -> None:
        """A neighbour gives no sign of life: kill what is left of it, if it is on this host, and end the job."""
        host, pid = self.places[rank]
        done = "it is out of reach from here, and the job ends"
        if host == socket.gethostname():
            there, done = runs(pid), "killed"
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            if ulfm.available() and there:  # then it is told as a loss, like any other
                warn(f"finds that rank {rank} ({pid}) gives no sign of life (--heartbeat-timeout), and has killed it")
                return
            if ulfm.available() and rank not in self.missing:  # the other neighbour may have killed it just now
                self.missing.add(rank)
                return
            if ulfm.available():
                self._end_all(f"rank {rank} on {host} (process {pid}) has ended, which MPI was not told")
        raise RunFailure(
            f"rank {rank} on {host} (process {pid}) has given no sign of life for {self.config.heartbeat_timeout:g} s "
            f"(--heartbeat-timeout): taken for hung; {done}"
        )

    def _end_all(self, why: str) -> None:
        """End every process of this host: a rank that left by itself, and not by a signal, is waited for for ever."""
        warn(f"ends the job: {why}")
        for host, pid in self.places:
            if host == socket.gethostname() and pid != os.getpid():
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        ulfm.die()

    # ---- what a launch asks for ---------------------------------------------------------------------------------

    def held(self) -> list[Held]:
        """This rank's layers; where weights lag by one update, those before it beside the slots."""
        held = []
        for chunk in self.engine.chunks:
            before = chunk.versions.stashed_before() if self.layout.lag == 1 else None
            for n, state in enumerate(chunk.stage.states):
                held.append((state.index, state.flat, state.slots | ({_BEFORE: before[n]} if before else {})))
        return held

    def describe(self) -> str:
        return f"batch {self.config.batch_size} in {self.config.micro_batches}; {self.layout.describe()}"

    def facts(self) -> dict[str, Any]:
        layout = self.layout
        return {
            "chunks": layout.chunks,
            "layers": layout.layers(self.rank),
            "mode": layout.mode,
            "schedule": layout.schedule if layout.mode == "strict" or layout.lag else "",
        }

    def _expected(self) -> int:
        """Bytes that this rank was to take at its peak."""
        layout = self.layout
        return layout.needs.rank(layout.layers(self.rank), layout.rooms(self.rank), layout.again).total

    def row(self) -> dict[str, Any]:
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
        return self.engine.updates

    @property
    def stop_signal(self) -> int:
        return self.engine.tokens.stop_signal
