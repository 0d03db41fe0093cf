"""The ring has stopped between two steps: split the layers as they should be now, move them, and go on."""

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ringtmp.errors import UserError
from ringtmp.nn.layer import Array
from ringtmp.nn.layer_state import LayerState
from ringtmp.ring.layer_split import split_over_ring
from ringtmp.ring.layout import Layout, with_ends
from ringtmp.ring.load_balance import WORTH, LoadMeter, RebalanceOrder, RebalancePolicy, hand_over, meet_round
from ringtmp.schedule.partition import StageCosts
from ringtmp.trace.fault_probe import FaultProbe
from ringtmp.trace.recorder import Recorder

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

Ends = tuple[int, ...]  # index after the last layer of each stage


class RebalancedTrainer(Protocol):
    """What a rebalance needs of the trainer of this rank."""

    layout: Layout

    @property
    def recorder(self) -> Recorder:
        """This rank's recorder."""

    @property
    def step(self) -> int:
        """Updates made since the run's first step."""

    @property
    def keeps_copies(self) -> bool:
        """Whether stages are copied to other nodes: copies that begin again begin a generation."""

    def states(self) -> list[LayerState]:
        """Every layer of this rank, in the order of the chain."""

    def adopt(self, layout: Layout, held: dict[int, list[Array]], step: int) -> None:
        """Make the stages of `layout` from the layers held: by index, parameters and slots."""

    def disconnect(self) -> None:
        """Free the engine's requests. Collective."""

    def connect_from(self, start: int) -> None:
        """Make an engine that goes on after `start` updates. Collective."""


class Rebalancer:
    """This rank's part in a rebalance.

    Parameters
    ----------
    comm : Intracomm
        The ring.
    trainer : RebalancedTrainer
    times : list of float
        Seconds of a step that each layer was timed to take on this rank.
    say : callable or None
        Prints a line (rank 0); None on the other ranks.
    probe : FaultProbe or None
    """

    def __init__(
        self,
        comm: "Intracomm",
        trainer: RebalancedTrainer,
        times: list[float],
        say: Callable[[str], None] | None = None,
        probe: FaultProbe | None = None,
    ) -> None:
        self.comm, self.trainer, self.times, self.say, self.probe = comm, trainer, times, say, probe
        self.meter, self.policy = LoadMeter(), RebalancePolicy()
        self.earlier: list[Ends] = []  # splits before the present one

    # ---- while training (`ringtmp.ring.load_balance.LoadBalance`) -----------------------------------------------

    def _computed(self) -> int:
        """Nanoseconds that this rank has spent on F, I, W and U."""
        totals = self.trainer.recorder.totals
        return sum(totals[kind] for kind in "FIWU")

    @property
    def busy(self) -> float:
        """Nanoseconds that this rank computes in a step; 0: not known yet."""
        return self.meter.busy

    def restart(self) -> None:
        """Measure from here on: an engine has been made."""
        self.meter.restart(self._computed())

    def stepped(self) -> None:
        """This rank has made all its updates of a step."""
        self.meter.stepped(self._computed())

    def weigh(self, step: int, mean: float, busiest: float) -> RebalanceOrder | None:
        """`step` steps are done on every rank (rank 0): whether to rebalance."""
        return self.policy.stepped(step, mean, busiest)

    # ---- between two steps --------------------------------------------------------------------------------------

    def execute(self, order: RebalanceOrder) -> None:
        """Carry out an order, once no message is on its way. Collective over the ring; only neighbours talk."""
        trainer = self.trainer
        step, before = trainer.step, trainer.layout.ends
        self._tell_probe("rebalance", step)
        with trainer.recorder.timed("balance", step):
            trainer.disconnect()
            after, expected = self._new_split(order)
            if after != before or trainer.keeps_copies:
                self._move(before, after, step)
            trainer.connect_from(step)
        if self.say:
            self.policy.dealt(step, after != before, order, expected)
            self.say(self.described(step, order, before, after))

    def _new_split(self, order: RebalanceOrder) -> tuple[Ends, float]:
        """Where the stages are to end, and nanoseconds of a step that the busiest rank should then compute.

        Each rank puts in only what it takes itself, and how it has fared so far.
        """
        layout, rank = self.trainer.layout, self.comm.rank
        if order.undo:
            meet_round(self.comm)
            return self.earlier.pop() if self.earlier else layout.ends, 0.0
        # Scale the times measured before training by how long this rank has really computed.
        mine = [layer for first, last in layout.layers(rank) for layer in range(first, last)]
        factor = self.meter.busy / 1e9 / sum(self.times[layer] for layer in mine)
        costs = [factor * seconds for seconds in self.times]
        # Split, and keep the present split unless the new one fits and is worth it.
        parts = [StageCosts.of(costs, layout.needs.reach(room)) for room in layout.rooms(rank)]
        counts, most = split_over_ring(self.comm, parts)
        ends = tuple(itertools.accumulate(counts))
        expected = most * layout.chunks * 1e9
        if expected > (1 - WORTH) * order.busiest or not self._fits(ends):
            return layout.ends, expected
        self.earlier.append(layout.ends)
        return ends, expected

    def _fits(self, ends: Ends) -> bool:
        """Whether `--activation-memory` allows it; the same on every rank."""
        try:
            with_ends(self.trainer.layout, ends, self.comm.rank)
        except UserError:
            return False
        return True

    def _move(self, before: Ends, after: Ends, step: int) -> None:
        """Send the layers that leave, receive those that arrive, and make the stages of the new split."""
        layout, states = self.trainer.layout, self.trainer.states()
        held = {state.index: [state.flat, *state.slots.values()] for state in states}
        model, slots, dtype = layout.job.model, len(layout.job.optimizer().slots), layout.job.dtype

        def make(index: int) -> list[Array]:
            return [np.empty(model.layers[index].count, dtype) for _ in range(1 + slots)]

        hand_over(self.comm, before, after, held, make)
        self._tell_probe("handed", step)
        self.trainer.adopt(with_ends(layout, after, self.comm.rank), held, step)

    def _tell_probe(self, phase: str, step: int) -> None:
        if self.probe:
            self.probe.at(phase, step)

    @staticmethod
    def described(step: int, order: RebalanceOrder, before: Ends, after: Ends) -> str:
        """What has been done, in a line."""
        busy = f"the busiest rank computes {order.busiest / 1e6:.3g} ms a step, all {order.mean / 1e6:.3g} on average"
        if after == before:
            return f"balance: step {step}: {busy}; no cut between whole layers is better by {WORTH:.0%}"
        counts = ",".join(str(count) for count in np.diff((0, *after)))
        was = ",".join(str(count) for count in np.diff((0, *before)))
        return f"balance: step {step}: {busy}; layers {was} {'back ' if order.undo else ''}to {counts}"
