"""The memory formula: the bytes that a rank of the ring needs, before any is allocated, and what would make it fit."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ringtmp.config.units import show_bytes
from ringtmp.errors import UserError
from ringtmp.nn.buffers import slot_bytes, state_bytes
from ringtmp.nn.optimizers import smaller
from ringtmp.run.job import Job
from ringtmp.run.memory_limits import Limit, tightest, used
from ringtmp.schedule.policies import POSTED
from ringtmp.schedule.registry import schedule_named

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

KERNELS = 64 << 20  # bytes of compiled kernels, and of the libraries that they load
BUFFERS = 12 << 20  # bytes of the trace's block, of messages in transit, and of the thread that writes checkpoints


@dataclass(frozen=True)
class Footprint:
    """Bytes that a rank needs, by what they are for.

    Attributes
    ----------
    program : int
        The process without the network.
    parameters, optimizer, gradients : int
        Of all layers: parameters; optimizer slots; gradients, with what layers derive from their parameters and with
        the earlier versions of the weights that a schedule keeps.
    copies : int
        In the node's memory (`--state-copies`).
    snapshot : int
        Copy from which checkpoints are written.
    activations : int
        Of all micro-batches in flight.
    scratch : int
        Work space of the kernels.
    passing : int
        Needed for a short time only, at the end.
    """

    program: int
    parameters: int
    optimizer: int
    gradients: int
    copies: int
    snapshot: int
    activations: int
    scratch: int
    passing: int

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(vars(self).values())


def _writes(job: Job) -> bool:
    """Whether checkpoints are written during training."""
    return job.writes and (bool(job.config.mtbf) or 0 < job.config.checkpoint_every < job.total)


@dataclass(frozen=True)
class Needs:
    """Computes what the stages of a job need on this rank, and what fits.

    Attributes
    ----------
    job : Job
    ranks, chunks : int
        Ranks of the ring, and stages of each rank.
    program : int
        Bytes of the process without stages.
    limit : Limit
        Bytes that this rank may take.
    writes : bool
        Whether checkpoints are written during training.
    """

    job: Job
    ranks: int
    chunks: int
    program: int
    limit: Limit
    writes: bool

    @classmethod
    def of(cls, comm: "Intracomm", job: Job, chunks: int) -> "Needs":
        """Measure the process and its limits, now. Collective over `comm`."""
        hosts = comm.allgather(socket.gethostname())
        limit = tightest(job.config.memory_limit, hosts.count(hosts[comm.rank]) * job.config.rings)
        return cls(job, comm.size, chunks, used() + KERNELS + BUFFERS, limit, _writes(job))

    @property
    def room(self) -> int:
        """Bytes that the stages may take."""
        return self.limit.size - self.program

    # ---- what is needed -----------------------------------------------------------------------------------------

    def stage(self, first: int, last: int, slots: int, recompute: Sequence[bool] | bool) -> Footprint:
        """Compute what a stage needs, without `program`.

        Parameters
        ----------
        first, last : int
            Its layers: `first` ... `last` - 1.
        slots : int
            Micro-batches that it has room for.
        recompute : sequence of bool, or bool
            For each layer, or for all: whether activations are computed again instead of kept.
        """
        job, config = self.job, self.job.config
        model, rows, names = job.model, job.timetable().rows, job.optimizer().slots
        layers, item = model.layers[first:last], job.dtype.itemsize
        count = sum(layer.count for layer in layers)
        state, gradients = state_bytes(model, first, last, job.dtype, len(names))
        kept = schedule_named(config.schedule).kept_versions(self.ranks)  # earlier versions of the weights
        derived = item * sum(layer.derived_numbers() for layer in layers)
        each = slot_bytes(model, first, last, rows, job.dtype, recompute)
        whole = slot_bytes(model, first, last, rows, job.dtype, recompute, whole=True)
        return Footprint(
            0,
            item * count,
            state - item * count,
            gradients + kept * (item * count + derived),
            # Two versions instead of one, and if nodes differ two of as large a stage for each rank to the left.
            state * (1 + 2 * min(config.state_copies, self.ranks - 1)) if config.state_copies else 0,
            state if self.writes else 0,
            whole + (slots - 1) * each,
            config.threads * item * max(layer.scratch_numbers(rows) for layer in layers),
            # A layer's parameters in their own shapes, and if it is written one of its slots.
            item * max(layer.count for layer in layers) * (1 + bool(names and job.writes)),
        )

    def rank(
        self, stages: Sequence[tuple[int, int]], slots: Sequence[int], recompute: Sequence[Sequence[bool]]
    ) -> Footprint:
        """Compute what a rank needs; see `stage` for the parameters, of which there is one for each stage."""
        each = [self.stage(*ends, room, flags) for ends, room, flags in zip(stages, slots, recompute, strict=True)]
        sums = {key: sum(getattr(one, key) for one in each) for key in vars(each[0])}
        return Footprint(**sums | {"program": self.program, "passing": max(one.passing for one in each)})

    def _least(self, first: int, last: int, slots: int) -> int:
        """Bytes of a stage that computes again as much as `--recompute` allows."""
        return self.stage(first, last, slots, self.job.config.recompute is not False).total

    # ---- what fits ----------------------------------------------------------------------------------------------

    def reach(self, slots: int, room: int | None = None) -> list[int]:
        """Find how far a stage can reach.

        A stage may need less memory with one more layer (an output that is sent has a buffer in each slot, one that is
        computed again has none), so a stage ends before the first layer with which it does not fit.

        Parameters
        ----------
        slots : int
            Micro-batches that the stage has room for.
        room : int or None
            Bytes for all stages of a rank; None: those of this rank.

        Returns
        -------
        list of int
            For each layer, and for the end of the model: the largest index after the last layer of a stage that begins
            there and fits into its share of the room.
        """
        layers = self.job.model.layers
        count, room = len(layers), (self.room if room is None else room) // self.chunks
        ends_of_slots = (
            2 * slots * self.job.timetable().rows * self.job.dtype.itemsize * max(each.inputs for each in layers)
        )
        if self._least(0, count, slots) + ends_of_slots <= room:  # then any part of the model fits
            return [count] * (count + 1)
        ends = []
        for first in range(count):
            last = first
            while last < count and self._least(first, last + 1, slots) <= room:
                last += 1
            ends.append(last)
        return [*ends, count]

    def in_flight(self, stages: Sequence[tuple[int, int]], most: int, ranks: int) -> int:
        """Find how many micro-batches, at most `most`, this rank's stages can hold.

        Activations are computed again rather than holding fewer than `ranks`.
        """
        for recompute, least in ((False, min(most, ranks)), (self.job.config.recompute is not False, 1)):
            flags = [(recompute,) * (last - first) for first, last in stages]
            for held in range(most, least - 1, -1):
                if self.rank(stages, [held + POSTED] * len(stages), flags).total <= self.limit.size:
                    return held
        return 1

    def choose_recompute(self, first: int, last: int, slots: int, room: int) -> tuple[bool, ...]:
        """Choose the layers of a stage that compute their activations again, so that it fits into `room` bytes.

        Those that save most bytes for each operation come first. See `stage` for the parameters.
        """
        choice = self.job.config.recompute
        flags = [choice is True] * (last - first)
        if choice != "auto":
            return tuple(flags)
        model, rows, dtype = self.job.model, self.job.timetable().rows, self.job.dtype

        def price(n: int) -> float:
            layer = model.layers[first + n]
            return (layer.flops(1) + layer.outputs) / max(1, layer.outputs + layer.saved_numbers())

        for n in sorted(range(last - first), key=price):
            if self.stage(first, last, slots, flags).total <= room:
                break
            before = slot_bytes(model, first, last, rows, dtype, flags)
            flags[n] = True
            flags[n] = slot_bytes(model, first, last, rows, dtype, flags) < before
        # One by one layers may save nothing where all together do.
        fits = self.stage(first, last, slots, flags).total <= room
        return tuple(flags) if fits else (True,) * len(flags)

    # ---- messages ----------------------------------------------------------------------------------------------

    def check(
        self, stages: Sequence[tuple[int, int]], slots: Sequence[int], recompute: Sequence[Sequence[bool]], rank: int
    ) -> None:
        """Raise `UserError` if this rank's stages do not fit, with the numbers and with what would help."""
        if len(recompute[0]) != stages[0][1] - stages[0][0]:
            recompute = [(self.job.config.recompute is not False,) * (last - first) for first, last in stages]
        needs = self.rank(stages, slots, recompute)
        if needs.total > self.limit.size:
            words = [f"{show_bytes(size)} {name}" for name, size in vars(needs).items() if size >= 1 << 20]
            raise UserError(
                f"memory_limit: rank {rank} would take {show_bytes(needs.total)} ({', '.join(words)}) of "
                f"{show_bytes(self.limit.size)} ({self.limit.whose}); {self.advice(slots[0])}"
            )

    def advice(self, slots: int) -> str:
        """Name settings with which the network would fit with room for `slots` micro-batches."""
        config, helps = self.job.config, []
        stages = self._stages(slots)
        if stages and stages <= len(self.job.model.layers):
            helps.append(f"{-(-stages // self.chunks)} ranks")
        tries: list[tuple[str, dict[str, Any], int]] = [
            ("--recompute on", {"recompute": True}, slots),
            ("--mode ready, which holds fewer micro-batches", {}, 1 + POSTED),
            ("more --micro-batches", {"micro_batches": config.batch_size}, slots),
            ("--checkpoint-every 0", {"checkpoint_every": 0, "mtbf": None}, slots),
            ("--state-copies off", {"state_copies": 0}, slots),
            *((f"--optimizer {name}", {"optimizer": name}, slots) for name in smaller(config.optimizer)),
        ]
        for words, change, room in tries:
            if not (room < slots or any(getattr(config, key) != value for key, value in change.items())):
                continue
            if 0 < self._with(change)._stages(room) <= self.ranks * self.chunks:
                helps.append(words)
        return f"what would fit: {', or '.join(helps)}" if helps else self._hopeless(slots)

    def _with(self, change: dict[str, Any]) -> "Needs":
        """The same with other settings."""
        job = replace(self.job, config=self.job.config.model_copy(update=change))
        return replace(self, job=job, writes=_writes(job))

    def _stages(self, slots: int) -> int:
        """Fewest stages with this rank's limit that hold the network; 0: no number does."""
        reach, count, first = self.reach(slots), 0, 0
        while first < len(reach) - 1:
            if reach[first] <= first:
                return 0
            first, count = reach[first], count + 1
        return count

    def _hopeless(self, slots: int) -> str:
        layer = max(range(len(self.job.model.layers)), key=lambda n: self._least(n, n + 1, slots))
        return (
            f"layer {self.job.model.layer_name(layer)} alone takes {show_bytes(self._least(layer, layer + 1, slots))}, "
            f"{show_bytes(max(0, self.room))} are left for it"
        )
