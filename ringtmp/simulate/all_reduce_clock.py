"""Data-parallel training with a ring all-reduce of each layer's gradient, simulated without events.

Layers are summed one after the other, the last one first. The sum of a layer takes 2 (workers - 1) hops, in each of
which every worker sends 1 / workers of the layer's bytes to the right. A worker begins a layer when its own gradient is
complete and its part in the sum before is over. After its backward pass every worker updates all layers, in the order
in which their sums arrive, and then begins the next step.

The hops are a recurrence over maximum and plus, solved for a whole layer at once. With a the seconds of a hop and b the
latency, hop h of worker w begins at S(h, w) = max(S(h-1, w) + a, S(h-1, w-1) + a + b), hence S(h, w) = h a + max over
j <= h of S(0, w-j) + j b. Since b >= 0 the longest way round counts for each worker, and the maximum is over a whole
circle, cut in two at one place. The plain twin, hop by hop, is `all_reduce` in `tests/support/naive_data_parallel.py`.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from ringtmp.action_kinds import U
from ringtmp.kernels._jit import inlined, jit
from ringtmp.kernels.compilation import declare
from ringtmp.simulate.worker_step import Floats, Workers, jittered, work_step


class Links(NamedTuple):
    """What is exchanged, and how; does not change.

    Attributes
    ----------
    link_seconds : float64[layers]
        Seconds for which one hop of a layer occupies a link; negative: the layer has no parameters.
    latency : float
        Seconds that a message is under way.
    """

    link_seconds: Floats
    latency: float


class State(NamedTuple):
    """Everything that changes while the clock runs.

    Attributes
    ----------
    gradient_at, weights_at : float64[workers, layers], float64[layers]
        When the gradient of each layer is complete in the worker's step; zeros, since a worker begins a step after all
        updates of the step before and waits for no single layer.
    updated, busy : float64[workers]
        When the worker has finished its latest update; seconds of its computation and updates.
    part_over : float64[workers]
        When the worker's part in the latest sum is over; before a layer's first hop: when the worker begins that layer.
    last_hop : float64[workers]
        When the worker's last hop of a layer begins.
    before, after : float64[workers + 1]
        Maxima of `part_over` - w x latency over the workers with lower numbers, and over all others.
    update_seconds : float64[workers]
        Of the worker's latest update.
    step_ends : float64[steps]
        When the last worker has updated all layers in each step.
    """

    gradient_at: Floats
    weights_at: Floats
    updated: Floats
    busy: Floats
    part_over: Floats
    last_hop: Floats
    before: Floats
    after: Floats
    update_seconds: Floats
    step_ends: Floats


def all_reduce(workers: Workers, links: Links) -> State:
    """Train with a ring all-reduce.

    Parameters
    ----------
    workers : Workers
    links : Links

    Returns
    -------
    State
        At the end; the results are `updated`, `busy` and `step_ends`.
    """
    w, layers = workers.number, len(workers.seconds)
    state = State(
        gradient_at=np.zeros((w, layers)),
        weights_at=np.zeros(layers),
        updated=np.zeros(w),
        busy=np.zeros(w),
        part_over=np.zeros(w),
        last_hop=np.zeros(w),
        before=np.full(w + 1, -np.inf),
        after=np.full(w + 1, -np.inf),
        update_seconds=np.zeros(w),
        step_ends=np.zeros(workers.steps),
    )
    _run(workers, links, state)
    return state


@partial(jit, counts_references=False)
def _run(workers, links, state):
    """Run step after step: compute, then exchange and update layer after layer, the last one first."""
    for step in range(workers.steps):
        for w in range(workers.number):
            now = state.updated[w]
            state.updated[w], worked = work_step(workers, w, step, now, state.weights_at, state.gradient_at[w])
            state.busy[w] += worked
        for layer in range(len(workers.seconds) - 1, -1, -1):
            if links.link_seconds[layer] >= 0:
                for w in range(workers.number):
                    state.part_over[w] = max(state.gradient_at[w, layer], state.part_over[w])
                if workers.number > 1:
                    _sum(workers.number, links.link_seconds[layer], links.latency, state)
                _update(workers, state, layer, step)
        for w in range(workers.number):
            state.step_ends[step] = max(state.step_ends[step], state.updated[w])


@inlined
def _sum(number, hop_seconds, latency, state):
    """Sum a layer round the ring: replace the times in `part_over` at which workers begin it by those of their ends."""
    begin, hops = state.part_over, 2 * (number - 1)
    # Find the maximum over the workers w - (hops - 1) ... w, a whole circle, as that over two stretches.
    for w in range(number):
        state.before[w + 1] = max(state.before[w], begin[w] - w * latency)
    for w in range(number - 1, -1, -1):
        state.after[w] = max(state.after[w + 1], begin[w] - w * latency)
    for w in range(number):
        farthest = (w - (hops - 1)) % number
        start = max(state.after[farthest], state.before[farthest] - number * latency)
        state.last_hop[w] = start + (hops - 1 + farthest) * latency + (hops - 1) * hop_seconds
    # A part is over when its last hop has left, and the last one from the left has arrived.
    for w in range(number):
        from_left = state.last_hop[w - 1 if w else number - 1] + latency
        state.part_over[w] = hop_seconds + max(state.last_hop[w], from_left)


@inlined
def _update(workers, state, layer, step):
    """Update a layer on every worker, once its sum has arrived and the update before it has ended."""
    # In two loops, of which LLVM vectorises the first if nothing jitters: in one the simulation takes a fifth longer.
    for w in range(workers.number):
        factor = jittered(workers, w * len(workers.seconds) + layer, U, step)
        state.update_seconds[w] = workers.slowdown[w] * workers.seconds[layer, U] * factor
    for w in range(workers.number):
        state.updated[w] = max(state.updated[w], state.part_over[w]) + state.update_seconds[w]
        state.busy[w] += state.update_seconds[w]


_ONE = np.ones(1)
declare(  # one step of one layer on one worker
    "all_reduce_clock",
    all_reduce,
    Workers(1, 1, 1, np.ones((1, 4)), _ONE, 0.0, 0),
    Links(_ONE, 0.0),
)
