"""When the layers are dealt anew: the word, its undoing, and what comes of it on nodes whose speeds change."""

import numpy as np
import pytest

from ringtmp.ring.load_balance import LEAST, WARM, WINDOW, WORTH, LoadMeter, RebalancePolicy, owners
from ringtmp.schedule.partition import StageCosts, split_layers

MS = 1e6


class Ring:
    """Ranks that compute layers of `costs` milliseconds at each step's speeds, under the rule of real ones."""

    def __init__(self, costs, speeds, noise=0.0, seed=0):
        self.costs, self.speeds, self.noise = np.asarray(costs, float), speeds, noise
        self.rng = np.random.default_rng(seed)
        self.ranks = len(speeds(0))
        self.ends = np.cumsum(split_layers([StageCosts.of(costs)] * self.ranks).counts)
        self.meters, self.governor = [LoadMeter() for _ in range(self.ranks)], RebalancePolicy()
        self.now, self.busy = 0.0, np.zeros(self.ranks)
        self.cuts, self.orders, self.before = [tuple(self.ends)], [], []
        for meter in self.meters:
            meter.restart(0)

    def times(self, step):
        starts = [0, *self.ends[:-1]]
        mine = np.array([self.costs[a:b].sum() for a, b in zip(starts, self.ends, strict=True)]) / self.speeds(step)
        return mine * (1 + self.noise * self.rng.uniform(-1, 1, self.ranks))

    def step(self, step):
        times = self.times(step)
        self.now += times.max() / 1e3
        self.busy += times * MS
        for meter, busy in zip(self.meters, self.busy, strict=True):
            meter.stepped(int(busy))
        loads = [meter.busy for meter in self.meters]
        order = self.governor.stepped(step + 1, np.mean(loads), max(loads), self.now)
        if order:
            self.obey(step + 1, order, loads)
        return times.max()

    def obey(self, step, order, loads):
        before, starts, expected = tuple(self.ends), [0, *self.ends[:-1]], 0.0
        if order.undo:
            after = self.before.pop()
        else:
            parts = []
            for load, a, b in zip(loads, starts, self.ends, strict=True):
                parts.append(StageCosts.of(load / 1e9 / self.costs[a:b].sum() * self.costs))
            split = split_layers(parts)
            expected = split.slowest * 1e9
            worth = split.slowest <= (1 - WORTH) * order.busiest / 1e9
            after = tuple(np.cumsum(split.counts)) if worth else before
            if after != before:
                self.before.append(before)
        self.ends = np.array(after)
        self.orders.append((step, order, before, after))
        self.governor.dealt(step, after != before, order, expected)
        for meter, busy in zip(self.meters, self.busy, strict=True):
            meter.restart(int(busy))

    def run(self, steps, first=0):
        return [self.step(step) for step in range(first, first + steps)]

    @property
    def moves(self):
        return [each for each in self.orders if each[2] != each[3]]


def best(ring, step):
    return split_layers([StageCosts.of(ring.costs / speed) for speed in ring.speeds(step)]).slowest


@pytest.mark.parametrize("ranks", [4, 8])
@pytest.mark.parametrize("slower", [2, 4])
@pytest.mark.parametrize("place", ["first", "last", "middle"])
def test_a_slow_node_from_the_start(ranks, slower, place):
    speeds = np.ones(ranks)
    speeds[{"first": 0, "last": -1, "middle": ranks // 2}[place]] /= slower
    ring = Ring(np.full(8 * ranks, 5.0), lambda step: speeds, noise=0.03)
    ring.run(50 * WINDOW)
    assert len(ring.moves) == 1
    assert ring.moves[0][0] <= WARM + 2 * WINDOW
    assert ring.times(0).max() <= 1.06 * best(ring, 0)


@pytest.mark.parametrize("seed", range(20))
def test_random_speeds(seed):
    rng = np.random.default_rng(seed)
    ranks = int(rng.integers(2, 9))
    speeds = rng.uniform(0.25, 1.0, ranks)
    ring = Ring(rng.uniform(2, 8, 10 * ranks), lambda step: speeds, noise=0.02, seed=seed)
    ring.run(50 * WINDOW)
    assert len(ring.moves) <= 2
    assert all(step <= ranks * (WARM + WINDOW) + 1 for step, *_ in ring.moves)
    assert ring.times(0).max() <= 1.1 * best(ring, 0)


@pytest.mark.parametrize("seed", range(10))
def test_equal_nodes_under_noise_keep_what_they_have(seed):
    ring = Ring(np.full(32, 5.0), lambda step: np.ones(8), noise=0.1, seed=seed)
    ring.run(50 * WINDOW)
    assert ring.moves == []


def test_a_node_that_becomes_slow_and_recovers():
    def speeds(step):
        return np.array([1, 1, 0.25 if 100 <= step < 300 else 1, 1])

    ring = Ring(np.full(32, 5.0), speeds, noise=0.02)
    ring.run(500)
    assert [step // 100 for step, *_ in ring.moves] == [1, 3]
    assert tuple(ring.ends) == ring.cuts[0]


@pytest.mark.parametrize("at", range(100, 112))
def test_whenever_a_node_becomes_slow(at):
    """In whichever step of a window: the first cut may rest on steps from before, the second one does not."""
    ring = Ring(np.full(48, 3.0), lambda step: np.array([1, 1, 0.25 if step >= at else 1, 1]), noise=0.02)
    ring.run(500)
    assert 1 <= len(ring.moves) <= 2
    assert ring.moves[-1][0] <= at + 4 * (WARM + WINDOW)
    assert ring.times(500).max() <= 1.08 * best(ring, 500)


def test_a_node_that_becomes_slower_by_degrees():
    ring = Ring(np.full(64, 2.0), lambda step: np.array([1, 1, 1, 1 / (1 + min(step, 300) / 100)]), noise=0.02)
    ring.run(600)
    assert ring.times(600).max() <= 1.08 * best(ring, 600)
    assert len(ring.moves) <= 12


def test_whole_layers_that_no_cut_can_even_out():
    """One layer takes longer than all the others together: looked at once, then left alone."""
    ring = Ring([100, 1, 1, 1, 1, 1], lambda step: np.ones(3), noise=0.02)
    ring.run(50 * WINDOW)
    assert ring.moves == []
    assert len(ring.orders) <= 2


def test_what_does_not_help_is_undone():
    """Layers that take longer elsewhere, which no rank can know before."""
    governor = RebalancePolicy()
    governor.known = 1.0
    step = now = 0
    order = None
    while not order:
        step, now = step + 1, now + 0.1
        order = governor.stepped(step, 50 * MS, 100 * MS, now)
    assert (order.busiest, order.mean, order.undo) == (100 * MS, 50 * MS, False)
    assert order.seconds == pytest.approx(0.1)
    governor.dealt(step, True, order, 50 * MS)
    order = None
    while not order:
        step, now = step + 1, now + 0.12
        order = governor.stepped(step, 60 * MS, 110 * MS, now)
    assert order.undo
    governor.dealt(step, True, order, 50 * MS)
    assert not any(governor.stepped(step + n, 50 * MS, 100 * MS, now + n / 10) for n in range(1, 400))


def test_a_window_lasts_long_enough_to_tell():
    """Steps of a millisecond: `LEAST` seconds, not `WINDOW` steps."""
    governor = RebalancePolicy()
    steps = [step for step in range(1, 1000) if governor.stepped(step, 1.0, 2.0, step / 1000)]
    assert steps
    assert steps[0] >= LEAST * 1000


def test_a_meter_forgets_what_was_before_a_cut():
    meter = LoadMeter()
    meter.restart(1000)
    assert meter.busy == 0
    for n in range(1, WARM + 4):
        meter.stepped(1000 + 10 * n if n <= WARM else 1000 + 10 * WARM + 5 * (n - WARM))
    assert meter.busy == 5
    meter.restart(5000)
    assert meter.busy == 0


def test_owners():
    assert owners([2, 3, 6]) == [0, 0, 1, 2, 2, 2]
    assert owners([0, 2]) == [1, 1]
