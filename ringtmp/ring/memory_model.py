"""What a rank of the ring will take of its node's memory, before any of it is taken, and what would make it fit."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ringtmp.config.units import show_bytes
from ringtmp.errors import UserError
from ringtmp.nn.optimizers import smaller
from ringtmp.nn.stage import slot_bytes, state_bytes
from ringtmp.run.job import Job
from ringtmp.run.memory_limits import Limit, tightest, used
from ringtmp.schedule.policies import POSTED

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

KERNELS = 64 << 20  # bytes that compiled kernels and the libraries that they need take once they are loaded
BUFFERS = 12 << 20  # of the trace's block, messages on their way, the thread that writes checkpoints


@dataclass(frozen=True)
class Footprint:
    """Bytes of a rank by what they are for, `program` being what is there before the network is."""

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
        """At the peak."""
        return sum(vars(self).values())


def _writes(job: Job) -> bool:
    """Whether there will be checkpoints beside the training."""
    return job.writes and (bool(job.config.mtbf) or 0 < job.config.checkpoint_every < job.total)


@dataclass(frozen=True)
class Needs:
    """How much the stages of a job take, and how much this rank may.

    Attributes
    ----------
    job : Job
    ranks, chunks : int
    program : int
        Bytes of the process without them.
    limit : Limit
    writes : bool
        Whether there are checkpoints beside the training.
    """

    job: Job
    ranks: int
    chunks: int
    program: int
    limit: Limit
    writes: bool

    @classmethod
    def of(cls, comm: "Intracomm", job: Job, chunks: int) -> "Needs":
        """On this rank, now. Collective over `comm`."""
        hosts = comm.allgather(socket.gethostname())
        limit = tightest(job.config.memory_limit, hosts.count(hosts[comm.rank]) * job.config.rings)
        return cls(job, comm.size, chunks, used() + KERNELS + BUFFERS, limit, _writes(job))

    @property
    def room(self) -> int:
        """Bytes that are left for the stages."""
        return self.limit.size - self.program

    # ---- what is taken ------------------------------------------------------------------------------------------

    def stage(self, first: int, last: int, slots: int, again: Sequence[bool] | bool) -> Footprint:
        """A stage with room for so many micro-batches; `program` left out."""
        job, config = self.job, self.job.config
        model, rows, names = job.model, job.timetable().rows, job.optimizer().slots
        layers, item = model.layers[first:last], job.dtype.itemsize
        count = sum(layer.count for layer in layers)
        state, gradients = state_bytes(model, first, last, job.dtype, len(names))
        before = {"2bw": 1, "pipedream": self.ranks}.get(config.schedule or "", 0)  # versions of the weights kept
        derived = item * sum(layer.derived_numbers() for layer in layers)
        each = slot_bytes(model, first, last, rows, job.dtype, again)
        whole = slot_bytes(model, first, last, rows, job.dtype, again, whole=True)
        return Footprint(
            0,
            item * count,
            state - item * count,
            gradients + before * (item * count + derived),
            # Two versions instead of one, and where nodes differ two of as large a stage for each rank to the left.
            state * (1 + 2 * min(config.state_copies, self.ranks - 1)) if config.state_copies else 0,
            state if self.writes else 0,
            whole + (slots - 1) * each,
            config.threads * item * max(layer.scratch_numbers(rows) for layer in layers),
            # A layer's parameters in their own shapes, and where they are written one of its slots.
            item * max(layer.count for layer in layers) * (1 + bool(names and job.writes)),
        )

    def rank(
        self, stages: Sequence[tuple[int, int]], slots: Sequence[int], again: Sequence[Sequence[bool]]
    ) -> Footprint:
        """All stages of a rank."""
        each = [self.stage(*ends, room, flags) for ends, room, flags in zip(stages, slots, again, strict=True)]
        sums = {key: sum(getattr(one, key) for one in each) for key in vars(each[0])}
        return Footprint(**sums | {"program": self.program, "passing": max(one.passing for one in each)})

    def _least(self, first: int, last: int, slots: int) -> int:
        """Bytes of a stage that makes again whatever it may."""
        return self.stage(first, last, slots, self.job.config.recompute is not False).total

    # ---- what fits ----------------------------------------------------------------------------------------------

    def reach(self, slots: int, room: int | None = None) -> list[int]:
        """For each layer, where a stage that begins there must end at the latest to fit into its share of the room.

        A stage may shrink when a layer is added to it (an output that is sent on has a buffer in each slot, one that is
        made again has not), so the end is where one first does not fit.
        """
        layers = self.job.model.layers
        count, room = len(layers), (self.room if room is None else room) // self.chunks
        ends_of_slots = (
            2 * slots * self.job.timetable().rows * self.job.dtype.itemsize * max(each.inputs for each in layers)
        )
        if self._least(0, count, slots) + ends_of_slots <= room:  # then any part of it does
            return [count] * (count + 1)
        ends = []
        for first in range(count):
            last = first
            while last < count and self._least(first, last + 1, slots) <= room:
                last += 1
            ends.append(last)
        return [*ends, count]

    def in_flight(self, stages: Sequence[tuple[int, int]], most: int, ranks: int) -> int:
        """Micro-batches, at most `most`, that this rank's stages can hold; work is made again for the first `ranks`."""
        for again, least in ((False, min(most, ranks)), (self.job.config.recompute is not False, 1)):
            flags = [(again,) * (last - first) for first, last in stages]
            for held in range(most, least - 1, -1):
                if self.rank(stages, [held + POSTED] * len(stages), flags).total <= self.limit.size:
                    return held
        return 1

    def again(self, first: int, last: int, slots: int, room: int) -> tuple[bool, ...]:
        """Layers of a stage that are to make their work again so that it fits into `room`: the cheapest bytes first."""
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
        # One by one they may save nothing where all together do.
        fits = self.stage(first, last, slots, flags).total <= room
        return tuple(flags) if fits else (True,) * len(flags)

    # ---- what is said -------------------------------------------------------------------------------------------

    def check(
        self, stages: Sequence[tuple[int, int]], slots: Sequence[int], again: Sequence[Sequence[bool]], rank: int
    ) -> None:
        """Raise `UserError` if this rank's stages do not fit, with the numbers and with what would help."""
        if len(again[0]) != stages[0][1] - stages[0][0]:
            again = [(self.job.config.recompute is not False,) * (last - first) for first, last in stages]
        takes = self.rank(stages, slots, again)
        if takes.total > self.limit.size:
            words = [f"{show_bytes(size)} {name}" for name, size in vars(takes).items() if size >= 1 << 20]
            raise UserError(
                f"memory_limit: rank {rank} would take {show_bytes(takes.total)} ({', '.join(words)}) of "
                f"{show_bytes(self.limit.size)} ({self.limit.whose}); {self.advice(slots[0])}"
            )

    def advice(self, slots: int) -> str:
        """What would make the network fit."""
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
        job = replace(self.job, config=self.job.config.model_copy(update=change))
        return replace(self, job=job, writes=_writes(job))

    def _stages(self, slots: int) -> int:
        """The least number of stages like this rank's that hold the network; 0: no number does."""
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
