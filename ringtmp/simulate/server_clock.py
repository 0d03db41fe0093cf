"""Data-parallel training with parameter servers, simulated: an event loop with two events for each message.

Layers are cut into chunks, each kept by one server. A worker sends the gradient of a chunk to its server, which
answers with new weights as soon as `Servers.staleness` permits. An update of a chunk uses all gradients that have
arrived since the last one, and its result goes to all workers whose answers are due: a batch of answers.

When a message is sent, its arrival and its effect on the receiver are computed at once. That is possible because first
bits arrive in the order in which messages are sent. The heap of events therefore holds only the next complete gradient
of each worker, the first update under way of each server, and the end of each message on its sender's link.

10 to 20 million messages a second on one core. The plain twin, in which every message is several events, is `serve` in
`tests/support/naive_data_parallel.py`.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ringtmp.action_kinds import U
from ringtmp.kernels._jit import inlined, jit
from ringtmp.kernels.compilation import declare
from ringtmp.schedule.local_rule import NONE
from ringtmp.simulate.event_heap import Heap, new_heap, pop, pop_event, push, push_event
from ringtmp.simulate.worker_step import Bools, Floats, Ints, Workers, jittered, work_step

GRADIENT, UPDATED, LINK_FREE = range(3)  # events of a node: a gradient is complete; an update ends; a message has left
CHUNK = 2**32  # factor of the chunk in the code of a batch: a power of two, since other divisions cost 8 % of the time


class Servers(NamedTuple):
    """The servers, the chunks that they keep, and the links; does not change.

    Attributes
    ----------
    number : int
        Servers.
    layer_of : int64[chunks]
        Layer of each chunk, ascending.
    first_chunk : int64[layers + 1]
        The chunks of a layer are `first_chunk[layer]` ... `first_chunk[layer + 1] - 1`.
    sizes : float64[chunks]
        Bytes.
    link_seconds : float64[chunks]
        Seconds for which a message of the chunk occupies a link.
    update_seconds : float64[chunks]
        Seconds of an update. Summing the gradients costs nothing: it keeps pace with the link.
    owner : int64[chunks]
        The server of each chunk.
    latency : float
        Seconds that a message is under way.
    staleness : int
        A worker that has sent its gradient of step t gets its answer once all workers have sent theirs of step
        t - `staleness`, chunk by chunk (0: BSP; above 0: SSP); -1: at once (ASP).
    forward_first : bool
        Which of the messages that wait for a link goes first: that of the chunk which the forward pass needs first, or
        the oldest.
    """

    number: int
    layer_of: Ints
    first_chunk: Ints
    sizes: Floats
    link_seconds: Floats
    update_seconds: Floats
    owner: Ints
    latency: float
    staleness: int
    forward_first: bool


class State(NamedTuple):
    """Everything that changes while the clock runs. Nodes are numbered workers first, then servers.

    Attributes
    ----------
    heap : Heap
        Events, coded as 4 x node + what happens.
    gradient_at, weights_at : float64[workers, layers]
        When the gradient of each layer is complete in the worker's step; when the worker has the layer's new weights.
    free_at, busy : float64[workers]
        When the worker has computed its step; seconds of its computation.
    step, missing : int64[workers]
        The worker's step; number of chunks of which no server has sent it the new weights of this step yet.
    next_layer : int64[workers]
        Layer whose gradient is complete next; -1: none.
    first_layer, last_layer : int64[workers]
        Ends of the list of layers that wait for the worker's link; -1: none waits.
    following, next_chunk : int64[workers, layers]
        The list's next layer (-1: none), and the layer's next chunk to send.
    update_ends, update_batch : float64[servers, batches], int64[servers, batches]
        Updates of each server as ring buffers, in the order of their ends: when each ends; the batch of answers that it
        makes, coded as `CHUNK` x chunk + number of answers.
    updates, updates_ended : int64[servers]
        Updates put into these buffers; those that have ended.
    keys, queue, waiting : float64[servers, batches], int64[servers, batches], int64[servers]
        The batches that wait for each server's link, as a heap (`event_heap.push`); their number.
    processor_free, serving : float64[servers]
        When the server has finished all updates under way; seconds of its updates.
    answers : int32[chunks, workers]
        Workers that an update of each chunk answers, as a ring buffer, in the order in which they will be answered.
    answers_end, answers_start : int64[chunks]
        Places in this buffer: for the next answer that is due; of the next answer to be sent.
    owed : bool[chunks, workers]
        Whether the worker has sent a gradient of the chunk, and its answer is not due yet.
    gradients : int64[chunks, steps]
        Gradients of each step that have been sent.
    complete_steps, chunk_updates : int64[chunks]
        Steps whose gradients have been sent by all workers; updates of the chunk.
    sending, in_free : bool[nodes], float64[nodes]
        Whether a message occupies the node's link on the way out; when the link is free on the way in.
    sent, received : float64[nodes]
        Bytes.
    finished, step_ends : float64[workers], float64[steps]
        When the worker has the weights of its latest step; when the last worker has those of each step.
    """

    heap: Heap
    gradient_at: Floats
    weights_at: Floats
    free_at: Floats
    busy: Floats
    step: Ints
    missing: Ints
    next_layer: Ints
    first_layer: Ints
    last_layer: Ints
    following: Ints
    next_chunk: Ints
    update_ends: Floats
    update_batch: Ints
    updates: Ints
    updates_ended: Ints
    keys: Floats
    queue: Ints
    waiting: Ints
    processor_free: Floats
    serving: Floats
    answers: NDArray[np.int32]
    answers_end: Ints
    answers_start: Ints
    owed: Bools
    gradients: Ints
    complete_steps: Ints
    chunk_updates: Ints
    sending: Bools
    in_free: Floats
    sent: Floats
    received: Floats
    finished: Floats
    step_ends: Floats


def serve(workers: Workers, servers: Servers) -> State:
    """Train with one or several parameter servers.

    Parameters
    ----------
    workers : Workers
    servers : Servers

    Returns
    -------
    State
        At the end; the results are `finished`, `busy`, `step_ends`, `serving`, `sent` and `received`.
    """
    state = _start(workers, servers)
    _run(workers, servers, state)
    return state


def _start(workers: Workers, servers: Servers) -> State:
    """The state at time 0: every worker has all weights."""
    w, s, layers, chunks = workers.number, servers.number, len(workers.seconds), len(servers.sizes)
    # A chunk has one batch under way under BSP, otherwise up to one for each worker.
    most = int(np.bincount(servers.owner, minlength=s).max())
    batches = most * (1 if servers.staleness == 0 else w) + 1
    return State(
        heap=new_heap(2 * (w + s) + 2),
        gradient_at=np.zeros((w, layers)),
        weights_at=np.zeros((w, layers)),
        free_at=np.zeros(w),
        busy=np.zeros(w),
        step=np.zeros(w, np.int64),
        missing=np.zeros(w, np.int64),
        next_layer=np.zeros(w, np.int64),
        first_layer=np.full(w, NONE, np.int64),
        last_layer=np.full(w, NONE, np.int64),
        following=np.zeros((w, layers), np.int64),
        next_chunk=np.zeros((w, layers), np.int64),
        update_ends=np.zeros((s, batches)),
        update_batch=np.zeros((s, batches), np.int64),
        updates=np.zeros(s, np.int64),
        updates_ended=np.zeros(s, np.int64),
        keys=np.zeros((s, batches)),
        queue=np.zeros((s, batches), np.int64),
        waiting=np.zeros(s, np.int64),
        processor_free=np.zeros(s),
        serving=np.zeros(s),
        answers=np.zeros((chunks, w), np.int32),
        answers_end=np.zeros(chunks, np.int64),
        answers_start=np.zeros(chunks, np.int64),
        owed=np.zeros((chunks, w), np.bool_),
        gradients=np.zeros((chunks, workers.steps), np.int64),
        complete_steps=np.zeros(chunks, np.int64),
        chunk_updates=np.zeros(chunks, np.int64),
        sending=np.zeros(w + s, np.bool_),
        in_free=np.zeros(w + s),
        sent=np.zeros(w + s),
        received=np.zeros(w + s),
        finished=np.zeros(w),
        step_ends=np.zeros(workers.steps),
    )


@partial(jit, counts_references=False)
def _run(workers, servers, state):
    """Run from event to event: note what has happened, then send the next message of a node whose link is free."""
    for w in range(workers.number):
        _begin_step(workers, servers, state, w)
    while state.heap.size[0] > 0:
        now = state.heap.times[0]
        event = pop_event(state.heap)
        node, what = event // 4, event % 4
        if what == GRADIENT:
            _queue_gradient(servers, state, node)
        elif what == UPDATED:
            _queue_answers(workers, servers, state, node)
        else:
            state.sending[node] = False
        if state.sending[node]:
            continue
        if node < workers.number:
            if state.first_layer[node] != NONE:
                c = _next_gradient(servers, state, node)
                arrives = _send(servers, state, node, workers.number + servers.owner[c], c, now)
                _receive_gradient(workers, servers, state, c, node, arrives)
        elif state.waiting[node - workers.number] > 0:
            c, w = _next_answer(workers, state, node - workers.number)
            arrives = _send(servers, state, node, w, c, now)
            _receive_weights(workers, servers, state, c, w, arrives)


@inlined
def _begin_step(workers, servers, state, w):
    """Compute the step of a worker to which all weights have been sent; its first complete gradient is an event."""
    now, step = state.free_at[w], state.step[w]
    state.free_at[w], worked = work_step(workers, w, step, now, state.weights_at[w], state.gradient_at[w])
    state.busy[w] += worked
    state.missing[w] = len(servers.sizes)
    state.next_layer[w] = _layer_below(servers, len(workers.seconds))
    push_event(state.heap, state.gradient_at[w, state.next_layer[w]], 4 * w + GRADIENT)


@inlined
def _layer_below(servers, layer):
    """The nearest layer below `layer` that has parameters; -1: none."""
    layer -= 1
    while layer >= 0 and servers.first_chunk[layer] == servers.first_chunk[layer + 1]:
        layer -= 1
    return layer


@inlined
def _queue_gradient(servers, state, w):
    """Put a layer's complete gradient into the queue of the worker's link; the next layer's gradient is an event."""
    layer = state.next_layer[w]
    state.next_chunk[w, layer] = servers.first_chunk[layer]
    state.following[w, layer] = NONE
    if state.first_layer[w] == NONE:
        state.first_layer[w] = state.last_layer[w] = layer
    elif servers.forward_first:
        state.following[w, layer], state.first_layer[w] = state.first_layer[w], layer
    else:
        state.following[w, state.last_layer[w]], state.last_layer[w] = layer, layer
    layer = _layer_below(servers, layer)
    state.next_layer[w] = layer
    if layer >= 0:
        push_event(state.heap, state.gradient_at[w, layer], 4 * w + GRADIENT)


@inlined
def _queue_answers(workers, servers, state, node):
    """Put the answers of an update that has ended into the queue of the server's link; the next update is an event."""
    s = node - workers.number
    batches = state.update_ends.shape[1]
    batch = state.update_batch[s, state.updates_ended[s] % batches]
    key = np.float64(batch // CHUNK if servers.forward_first else state.updates_ended[s])
    state.waiting[s] = push(state.keys[s], state.queue[s], state.waiting[s], key, batch)
    state.updates_ended[s] += 1
    if state.updates_ended[s] < state.updates[s]:
        push_event(state.heap, state.update_ends[s, state.updates_ended[s] % batches], 4 * node + UPDATED)


@inlined
def _next_gradient(servers, state, w):
    """Remove the next chunk from the queue of a worker's link and return it."""
    layer = state.first_layer[w]
    c = state.next_chunk[w, layer]
    state.next_chunk[w, layer] += 1
    if state.next_chunk[w, layer] == servers.first_chunk[layer + 1]:
        state.first_layer[w] = state.following[w, layer]
    return c


@inlined
def _next_answer(workers, state, s):
    """Remove the next answer from the queue of a server's link and return its chunk and its worker."""
    c = state.queue[s, 0] // CHUNK
    state.queue[s, 0] -= 1
    if state.queue[s, 0] % CHUNK == 0:
        state.waiting[s] = pop(state.keys[s], state.queue[s], state.waiting[s])
    w = np.int64(state.answers[c, state.answers_start[c]])
    state.answers_start[c] = _next_place(workers, state.answers_start[c])
    return c, w


@inlined
def _next_place(workers, place):
    """The place after `place` in a ring buffer of answers."""
    return place + 1 if place + 1 < workers.number else 0


@inlined
def _send(servers, state, source, target, c, now):
    """Send a chunk from node to node; returns when it has arrived."""
    state.sending[source] = True
    push_event(state.heap, now + servers.link_seconds[c], 4 * source + LINK_FREE)
    arrives = max(now + servers.latency, state.in_free[target]) + servers.link_seconds[c]
    state.in_free[target] = arrives
    state.sent[source] += servers.sizes[c]
    state.received[target] += servers.sizes[c]
    return arrives


@inlined
def _receive_gradient(workers, servers, state, c, w, arrives):
    """Count a gradient at its server, and update the chunk if that makes answers due."""
    state.gradients[c, state.step[w]] += 1
    state.owed[c, w] = True
    # If it completes a step, answers to all workers may be due; otherwise only that to its sender.
    first, stop = w, w + 1
    while state.complete_steps[c] < workers.steps and state.gradients[c, state.complete_steps[c]] == workers.number:
        state.complete_steps[c] += 1
        first, stop = 0, workers.number
    due = 0
    for v in range(first, stop):
        if state.owed[c, v] and (
            servers.staleness < 0 or state.step[v] + 1 - servers.staleness <= state.complete_steps[c]
        ):
            state.owed[c, v] = False
            state.answers[c, state.answers_end[c]] = v
            state.answers_end[c] = _next_place(workers, state.answers_end[c])
            due += 1
    if due:
        _update(workers, servers, state, c, due, arrives)


@inlined
def _update(workers, servers, state, c, due, now):
    """Update a chunk as soon as its server is free, for `due` answers."""
    s, stage = servers.owner[c], workers.number * len(workers.seconds) + c
    lasts = servers.update_seconds[c] * jittered(workers, stage, U, state.chunk_updates[c])
    state.chunk_updates[c] += 1
    state.processor_free[s] = max(now, state.processor_free[s]) + lasts
    state.serving[s] += lasts
    # Only the first update under way of each server is an event, which keeps the heap small.
    if state.updates_ended[s] == state.updates[s]:
        push_event(state.heap, state.processor_free[s], 4 * (workers.number + s) + UPDATED)
    place = state.updates[s] % state.update_ends.shape[1]
    state.update_ends[s, place] = state.processor_free[s]
    state.update_batch[s, place] = c * CHUNK + due
    state.updates[s] += 1


@inlined
def _receive_weights(workers, servers, state, c, w, arrives):
    """Note when a worker has a chunk's new weights; begin its next step if these are the last ones of its step."""
    state.weights_at[w, servers.layer_of[c]] = arrives
    state.missing[w] -= 1
    # Messages arrive in the order in which they were sent, so this one is also the last to arrive.
    if state.missing[w] == 0:
        state.step_ends[state.step[w]] = max(state.step_ends[state.step[w]], arrives)
        state.finished[w] = arrives
        state.step[w] += 1
        if state.step[w] < workers.steps:
            _begin_step(workers, servers, state, w)


_ONE, _ZERO = np.ones(1), np.zeros(1, np.int64)
declare(  # one step of one layer on one worker, with one server
    "server_clock",
    serve,
    Workers(1, 1, 1, np.ones((1, 4)), _ONE, 0.0, 0),
    Servers(1, _ZERO, np.arange(2), _ONE, _ONE, _ONE, _ZERO, 0.0, 0, True),
)
