"""One training step of a data-parallel worker: the same in all three ways of exchanging gradients.

Every worker holds all layers and computes its share of the batch. The gradient of a layer is complete when its last W
has ended, and the F of a layer in the next step waits for that layer's new weights.

Conventions of the three simulators (`server_clock`, `colocated_clock`, `all_reduce_clock`): times are seconds; layers
are numbered in the order of the forward pass; nodes jitter as in `ringtmp.simulate.pipeline_clock`, where every layer
of every worker counts as a stage. Links are full duplex, one for each node, and cut-through: a message occupies the
link of its sender; its first bit arrives `latency` later, and from then on it occupies the link of its receiver, in
the order of first bits.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ringtmp.action_kinds import F, I, W
from ringtmp.emulate.jitter import stretch
from ringtmp.kernels._jit import inlined

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Compiled into each simulator: a function that several of them call is optimised again in each, with other roundings,
# and which of these versions runs depends on what a process loads first.
stretch_inlined = inlined(getattr(stretch, "py_func", stretch))


class Workers(NamedTuple):
    """The workers and what they compute; does not change.

    Attributes
    ----------
    number : int
        Workers.
    steps : int
        Optimizer steps, chained.
    micro_batches : int
        Micro-batches of each worker's share of a batch.
    seconds : float64[layers, 4]
        Of F, I and W of each layer for one micro-batch, and of the layer's U.
    slowdown : float64[number]
        Factor of all durations of each worker.
    jitter, seed : float, int
        Durations vary by a factor uniform in 1 +- `jitter` (`ringtmp.emulate.jitter`).
    """

    number: int
    steps: int
    micro_batches: int
    seconds: Floats
    slowdown: Floats
    jitter: float
    seed: int


@inlined
def jittered(workers, stage, kind, number):
    """Factor of an action's duration; the arguments are those of `ringtmp.emulate.jitter.uniform`."""
    return stretch_inlined(workers.jitter, workers.seed, stage, kind, number)


@inlined
def work_step(workers, w, step, now, weights_at, gradient_at):
    """Run F, I and W of all layers and micro-batches of one step of one worker.

    Parameters
    ----------
    workers : Workers
    w, step : int
        Number of the worker, and of the step.
    now : float
        When the worker is free, in seconds.
    weights_at : float64[layers]
        When the worker has the weights of each layer, in seconds; the F of the first micro-batch waits for them.
    gradient_at : float64[layers]
        Filled with the times at which the gradients of the layers are complete, in seconds.

    Returns
    -------
    now : float
        When the worker has finished, in seconds.
    busy : float
        Seconds for which it computed.
    """
    seconds, slowdown, layers, busy = workers.seconds, workers.slowdown[w], len(workers.seconds), 0.0
    for number in range(step * workers.micro_batches, (step + 1) * workers.micro_batches):
        for layer in range(layers):
            lasts = slowdown * seconds[layer, F] * jittered(workers, w * layers + layer, F, number)
            now = (max(now, weights_at[layer]) if number == step * workers.micro_batches else now) + lasts
            busy += lasts
        # I of a layer comes before its W: I makes the gradient that the layer below waits for.
        for layer in range(layers - 1, -1, -1):
            lasts = slowdown * seconds[layer, I] * jittered(workers, w * layers + layer, I, number)
            lasts += slowdown * seconds[layer, W] * jittered(workers, w * layers + layer, W, number)
            now += lasts
            busy += lasts
            gradient_at[layer] = now
    return now, busy
