"""The ring has stopped between two steps: cut the chain where it should be now, move layers, and go on."""

import itertools
from typing import TYPE_CHECKING

import numpy as np

from ringtmp.errors import UserError
from ringtmp.nn.layer import Array
from ringtmp.ring.layer_split import split_over_ring
from ringtmp.ring.layout import cut_anew
from ringtmp.ring.load_balance import WORTH, LoadMeter, Order, RebalancePolicy, hand_over, meet_round
from ringtmp.schedule.partition import StageCosts

if TYPE_CHECKING:
    from ringtmp.ring.trainer import RingLaunch

Ends = tuple[int, ...]  # where each stage ends


class Rebalancer:
    """This rank's part in dealing the layers anew.

    Parameters
    ----------
    launch : RingLaunch
    times : list of float
        Seconds of a step that each layer was timed to take on this rank.
    """

    def __init__(self, launch: "RingLaunch", times: list[float]) -> None:
        self.launch, self.times = launch, times
        self.meter, self.governor = LoadMeter(), RebalancePolicy()
        self.cuts: list[Ends] = []  # before the present one

    def obey(self, order: Order) -> None:
        """Nothing is on its way any more. Collective over the ring; only neighbours talk."""
        launch = self.launch
        step, before = launch.engine.updates, launch.layout.ends
        self._probe("rebalance", step)
        with launch.recorder.timed("balance", step):
            launch.engine.close()
            after, expected = self._new_cut(order)
            if after != before or launch.memory:  # copies that begin anew begin a generation
                self._move(before, after, step)
            launch.connect_from(step)
        if launch.reporter:
            self.governor.dealt(step, after != before, order, expected)
            launch.reporter.say(self.told(step, order, before, after))

    def _new_cut(self, order: Order) -> tuple[Ends, float]:
        """Where the stages are to end, and nanoseconds of a step that the busiest rank should then compute.

        Each rank puts in only what it takes itself, and how it has fared so far.
        """
        launch, layout = self.launch, self.launch.layout
        if order.undo:
            meet_round(launch.comm)
            return self.cuts.pop() if self.cuts else layout.ends, 0.0
        mine = [layer for first, last in layout.layers(launch.rank) for layer in range(first, last)]
        factor = self.meter.busy / 1e9 / sum(self.times[layer] for layer in mine)
        costs = [factor * seconds for seconds in self.times]
        parts = [StageCosts.of(costs, layout.needs.reach(room)) for room in layout.rooms(launch.rank)]
        counts, most = split_over_ring(launch.comm, parts)
        ends = tuple(itertools.accumulate(counts))
        expected = most * layout.chunks * 1e9
        if expected > (1 - WORTH) * order.most or not self._fits(ends):
            return layout.ends, expected
        self.cuts.append(layout.ends)
        return ends, expected

    def _fits(self, ends: Ends) -> bool:
        """Whether `--activation-memory` allows it; the same on every rank."""
        try:
            cut_anew(self.launch.layout, ends, self.launch.rank)
        except UserError:
            return False
        return True

    def _move(self, before: Ends, after: Ends, step: int) -> None:
        """Hand over, take over, and make the stages of the new cut."""
        launch = self.launch
        held = {state.index: [state.flat, *state.slots.values()] for state in launch.states()}

        def make(index: int) -> list[Array]:
            count = launch.model.layers[index].count
            return [np.empty(count, launch.job.dtype) for _ in range(1 + len(launch.job.optimizer().slots))]

        hand_over(launch.comm, before, after, held, make)
        self._probe("handed", step)
        launch.go_by(cut_anew(launch.layout, after, launch.rank), held, step)

    def _probe(self, phase: str, step: int) -> None:
        if self.launch.probe:
            self.launch.probe.at(phase, step)

    @staticmethod
    def told(step: int, order: Order, before: Ends, after: Ends) -> str:
        """What has been done, in a line."""
        busy = f"the busiest rank computes {order.most / 1e6:.3g} ms a step, all {order.mean / 1e6:.3g} on average"
        if after == before:
            return f"balance: step {step}: {busy}; no cut between whole layers is better by {WORTH:.0%}"
        counts = ",".join(str(count) for count in np.diff((0, *after)))
        was = ",".join(str(count) for count in np.diff((0, *before)))
        return f"balance: step {step}: {busy}; layers {was} {'back ' if order.undo else ''}to {counts}"
