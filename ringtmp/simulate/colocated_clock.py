"""Data-parallel training with a server on every worker's node, simulated: one message for each node and layer.

Every worker is the server of its share of each layer, and training is synchronous. A layer is cut finely and dealt to
all workers, so what a node sends of it is spread evenly over all others. A node receives the mean of what the others
send, which is never more than its bandwidth: messages queue only on the way out, and a node's messages of one layer are
simulated as one. A worker updates its shares in a separate thread, which takes no time from its own computation.

A layer is sent twice in a step: as gradient from each worker to the servers, and as weights from each server back.
The plain twin, in which each message goes to each other worker by itself, is `colocate` in
`tests/support/naive_data_parallel.py`.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from ringtmp.action_kinds import U
from ringtmp.kernels._jit import inlined, jit
from ringtmp.kernels.compilation import declare
from ringtmp.simulate.event_heap import Heap, new_heap, pop, pop_event, push, push_event
from ringtmp.simulate.worker_step import Bools, Floats, Ints, Workers, jittered, work_step

# Events: a worker's gradient of its next layer is complete; all gradients of a layer have arrived; a worker has updated
# its share of a layer; a message has left its link.
COMPLETE, SUMMED, UPDATED, LINK_FREE = range(4)
GRADIENT, WEIGHTS = range(2)  # what a message carries
WORKER = 2**32  # factor of the worker in the place of `UPDATED`: a power of two, since other divisions take long


class Links(NamedTuple):
    """What is exchanged, and how; does not change.

    Attributes
    ----------
    link_seconds : float64[layers]
        Seconds for which a node's messages of one layer to all others occupy its link, one way; negative: the layer has
        no parameters.
    latency : float
        Seconds that a message is under way.
    forward_first : bool
        Which of the messages that wait for a link goes first: that of the layer which the forward pass needs first, or
        the oldest.
    """

    link_seconds: Floats
    latency: float
    forward_first: bool


class State(NamedTuple):
    """Everything that changes while the clock runs.

    Attributes
    ----------
    heap : Heap
        Events, coded as 4 x place + what happens; the place is a worker, a layer (`SUMMED`), or `WORKER` x worker +
        layer (`UPDATED`).
    gradient_at : float64[workers, layers]
        When the gradient of each layer is complete in the step under way.
    weights_at : float64[layers]
        When all workers have the layer's new weights.
    free_at, busy : float64[workers]
        When the worker has computed its step; seconds of its computation.
    next_layer : int64[workers]
        Layer whose gradient is complete next; -1: none.
    processor_free, serving : float64[workers]
        When the worker's server thread has finished all updates under way; seconds of its updates.
    sending : bool[workers]
        Whether a message occupies the worker's link on the way out.
    keys, queue, waiting : float64[workers, 2 layers + 1], int64[workers, 2 layers + 1], int64[workers]
        The messages that wait for each worker's link, as a heap (`event_heap.push`), coded as 2 x layer + what each
        carries; their number.
    queued : int64[workers]
        Messages that have been put into this queue.
    sent, latest : int64[layers, 2], float64[layers, 2]
        Of the gradient and of the weights of each layer: workers that have sent them in the step under way, and when
        the latest of these messages arrives.
    step, layers_left : int64[1], int64[1]
        The step under way; layers of which not all workers have sent the new weights yet.
    step_ends : float64[steps]
        When all workers have all weights of each step.
    """

    heap: Heap
    gradient_at: Floats
    weights_at: Floats
    free_at: Floats
    busy: Floats
    next_layer: Ints
    processor_free: Floats
    serving: Floats
    sending: Bools
    keys: Floats
    queue: Ints
    waiting: Ints
    queued: Ints
    sent: Ints
    latest: Floats
    step: Ints
    layers_left: Ints
    step_ends: Floats


def colocate(workers: Workers, links: Links) -> State:
    """Train with a server on every worker's node.

    Parameters
    ----------
    workers : Workers
    links : Links

    Returns
    -------
    State
        At the end; the results are `busy`, `step_ends` and `serving`.
    """
    state = _start(workers)
    _run(workers, links, state)
    return state


def _start(workers: Workers) -> State:
    """The state at time 0: every worker has all weights."""
    w, layers = workers.number, len(workers.seconds)
    return State(
        heap=new_heap(w * (layers + 3) + layers),
        gradient_at=np.zeros((w, layers)),
        weights_at=np.zeros(layers),
        free_at=np.zeros(w),
        busy=np.zeros(w),
        next_layer=np.zeros(w, np.int64),
        processor_free=np.zeros(w),
        serving=np.zeros(w),
        sending=np.zeros(w, np.bool_),
        keys=np.zeros((w, 2 * layers + 1)),
        queue=np.zeros((w, 2 * layers + 1), np.int64),
        waiting=np.zeros(w, np.int64),
        queued=np.zeros(w, np.int64),
        sent=np.zeros((layers, 2), np.int64),
        latest=np.zeros((layers, 2)),
        step=np.zeros(1, np.int64),
        layers_left=np.zeros(1, np.int64),
        step_ends=np.zeros(workers.steps),
    )


@partial(jit, counts_references=False)
def _run(workers, links, state):
    """Run step after step, each from event to event until all new weights are under way."""
    now = 0.0
    for step in range(workers.steps):
        state.step[0] = step
        _begin_step(workers, links, state, now)
        while state.layers_left[0] > 0:
            now = state.heap.times[0]
            event = pop_event(state.heap)
            place, what = event // 4, event % 4
            w = place
            if what == COMPLETE:
                _queue_gradient(links, state, w, now)
            elif what == SUMMED:
                _update_shares(workers, state, place, now)
                continue
            elif what == UPDATED:
                w = place // WORKER
                _queue(links, state, w, place % WORKER, WEIGHTS)
            else:
                state.sending[w] = False
            if not state.sending[w] and state.waiting[w] > 0:
                _send(workers, links, state, w, now)


@inlined
def _begin_step(workers, links, state, now):
    """Compute a step of all workers; the first complete gradient of each is an event."""
    layers = len(workers.seconds)
    state.sent[:] = 0
    state.latest[:] = 0.0
    for layer in range(layers):
        state.layers_left[0] += links.link_seconds[layer] >= 0
    for w in range(workers.number):
        free_at = state.free_at[w]
        state.free_at[w], worked = work_step(workers, w, state.step[0], free_at, state.weights_at, state.gradient_at[w])
        state.busy[w] += worked
        state.next_layer[w] = _layer_below(links, layers)
        push_event(state.heap, max(state.gradient_at[w, state.next_layer[w]], now), 4 * w + COMPLETE)


@inlined
def _layer_below(links, layer):
    """The nearest layer below `layer` that has parameters; -1: none."""
    layer -= 1
    while layer >= 0 and links.link_seconds[layer] < 0:
        layer -= 1
    return layer


@inlined
def _queue(links, state, w, layer, carries):
    """Put a message into the queue of a worker's link."""
    key = np.float64(state.step[0] * len(links.link_seconds) + layer if links.forward_first else state.queued[w])
    state.queued[w] += 1
    state.waiting[w] = push(state.keys[w], state.queue[w], state.waiting[w], key, 2 * layer + carries)


@inlined
def _queue_gradient(links, state, w, now):
    """Put a layer's complete gradient into the queue of the worker's link; the next layer's gradient is an event."""
    layer = state.next_layer[w]
    _queue(links, state, w, layer, GRADIENT)
    layer = _layer_below(links, layer)
    state.next_layer[w] = layer
    if layer >= 0:
        push_event(state.heap, max(state.gradient_at[w, layer], now), 4 * w + COMPLETE)


@inlined
def _update_shares(workers, state, layer, now):
    """Update each worker's share of a layer, all of whose gradients have arrived, once its server thread is free."""
    layers = len(workers.seconds)
    for w in range(workers.number):
        lasts = workers.slowdown[w] * workers.seconds[layer, U] / workers.number
        lasts *= jittered(workers, w * layers + layer, U, state.step[0])
        state.processor_free[w] = max(now, state.processor_free[w]) + lasts
        state.serving[w] += lasts
        push_event(state.heap, state.processor_free[w], 4 * (w * WORKER + layer) + UPDATED)


@inlined
def _send(workers, links, state, w, now):
    """Send a worker's next message; the last one of a layer completes the sum of its gradients, or its new weights."""
    layer, carries = state.queue[w, 0] // 2, state.queue[w, 0] % 2
    state.waiting[w] = pop(state.keys[w], state.queue[w], state.waiting[w])
    state.sending[w] = True
    leaves = now + links.link_seconds[layer]
    push_event(state.heap, leaves, 4 * w + LINK_FREE)
    arrives = leaves + (links.latency if workers.number > 1 else 0.0)
    state.latest[layer, carries] = max(state.latest[layer, carries], arrives)
    state.sent[layer, carries] += 1
    if state.sent[layer, carries] == workers.number:
        if carries == GRADIENT:
            push_event(state.heap, state.latest[layer, GRADIENT], 4 * layer + SUMMED)
        else:
            state.weights_at[layer] = state.latest[layer, WEIGHTS]
            state.step_ends[state.step[0]] = max(state.step_ends[state.step[0]], state.weights_at[layer])
            state.layers_left[0] -= 1


_ONE = np.ones(1)
declare(  # one step of one layer on one worker
    "colocated_clock",
    colocate,
    Workers(1, 1, 1, np.ones((1, 4)), _ONE, 0.0, 0),
    Links(_ONE, 0.0, True),
)
