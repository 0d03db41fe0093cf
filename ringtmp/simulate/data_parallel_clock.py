"""Data-parallel training under a clock: parameter servers and all-reduce, simulated without a machine.

Every worker holds all layers and computes its share of the batch; what differs is how the gradients become new weights.
Times are seconds, layers are numbered in the order of the forward. A layer's gradient leaves when its last W is done,
and the next step's F of a layer waits for that layer's new weights. Links are full duplex, one a node, and cut through:
a message occupies the sender's link, its first bit comes out `latency` later, and from then on it occupies the
receiver's link, in order of first bits. Nodes jitter as in `ringtmp.simulate.pipeline_clock`: every layer of every
worker is a stage.

`serve` is an event loop with two events a message: what a message does at its receiver is worked out when it is sent,
since first bits arrive in the order in which sends begin; 3 million messages a second when asynchronous, up to 11
million when synchronous. `colocate` takes a node's messages of one layer as one. `all_reduce` needs no events: its hops
are a recurrence over maximum and plus, solved for a whole bucket at once.
"""

import numpy as np

from kernels._jit import jit
from kernels.registry import declare
from ringtmp.action_kinds import F, I, U, W
from ringtmp.emulate.jitter import stretch
from ringtmp.schedule.local_rule import NONE
from ringtmp.simulate.event_heap import pop, push

READY, FREE, RELEASE, SUMMED = range(4)  # a gradient exists, a link is free, weights are made, gradients are there


@jit
def _work(worker, step, micro, seconds, slower, jitter, seed, now, here, exists):
    """F, I and W of one step of a worker who is free at `now`: when it is done, and for how long it worked.

    Each F of the first micro-batch waits for its layer's weights (`here`); `exists` is filled with when the layers'
    gradients are complete. I comes before W, since it makes the gradient that W takes.
    """
    layers, busy = len(seconds), 0.0
    for number in range(step * micro, (step + 1) * micro):
        for layer in range(layers):
            lasts = slower * seconds[layer, F] * stretch(jitter, seed, worker * layers + layer, F, number)
            now = (max(now, here[layer]) if number == step * micro else now) + lasts
            busy += lasts
        for layer in range(layers - 1, -1, -1):
            lasts = slower * seconds[layer, I] * stretch(jitter, seed, worker * layers + layer, I, number)
            lasts += slower * seconds[layer, W] * stretch(jitter, seed, worker * layers + layer, W, number)
            now += lasts
            busy += lasts
            exists[layer] = now
    return now, busy


@jit
def serve(
    workers,
    servers,
    steps,
    micro,
    seconds,
    slower,
    bounds,
    sizes,
    taken,
    updates,
    owner,
    latency,
    bound,
    forward_first,
    jitter,
    seed,
):
    """Train with one or several parameter servers.

    A server answers a worker's gradient of a chunk with new weights as soon as it may, and updates the chunk when
    answers are due, with all gradients that have come since. Adding gradients up keeps pace with the link.

    Parameters
    ----------
    workers, servers, steps, micro : int
        Every worker's share of a batch comes in `micro` micro-batches.
    seconds : float64[layers, 4]
        Of F, I and W of a micro-batch; the last column is not read.
    slower : float64[workers]
        What a worker's durations are multiplied by.
    bounds : int64[layers + 1]
        Where each layer's chunks begin and end; they are numbered in the order of the forward.
    sizes, taken, updates : float64[chunks]
        Bytes, seconds of a link, and seconds of a server's update.
    owner : int64[chunks]
        The server of each chunk.
    latency : float
    bound : int
        Who has pushed step t of a chunk gets an answer once all have pushed step t - `bound` (SSP; 0: BSP); -1: at
        once (ASP).
    forward_first : bool
        Whether a link takes, of what waits for it, the chunk that the next forward needs first, or the oldest.
    jitter, seed : float, int

    Returns
    -------
    tuple
        When each worker had its last weights; busy seconds of each worker; end of each step (the last worker's weights
        are there); busy seconds of each server; bytes sent and received by each node, workers first.
    """
    layers, chunks, nodes = len(seconds), len(sizes), workers + servers
    exists, here, free_at = np.zeros((workers, layers)), np.zeros((workers, layers)), np.zeros(workers)
    clock, left, cursor = np.zeros(workers, np.int64), np.zeros(workers, np.int64), np.zeros(workers, np.int64)
    # What waits for a worker's link: a list of layers, and of each the next chunk.
    top, tail = np.full(workers, NONE), np.full(workers, NONE)
    below, chunk = np.zeros((workers, layers), np.int64), np.zeros((workers, layers), np.int64)
    # What waits for a server's link: a heap of batches (chunk and number of answers), and of each chunk whom to answer.
    most, layer_of = np.zeros(servers, np.int64), np.zeros(chunks, np.int64)
    for layer in range(layers):
        for c in range(bounds[layer], bounds[layer + 1]):
            most[owner[c]] += 1
            layer_of[c] = layer
    batches = most.max() * (1 if bound == 0 else workers) + 1
    keys, queue = np.empty((servers, batches)), np.empty((servers, batches), np.int64)
    waiting, releases = np.zeros(servers, np.int64), 0
    # Batches whose update is not over yet, in the order of their ends: only each server's first is an event, so that
    # the heap of events stays small.
    over, next_batch = np.empty((servers, batches)), np.empty((servers, batches), np.int64)
    made_first, made_last = np.zeros(servers, np.int64), np.zeros(servers, np.int64)
    line = np.empty((chunks, workers), np.int32)
    head, end_of_line = np.zeros(chunks, np.int64), np.zeros(chunks, np.int64)
    owed, arrived = np.zeros((chunks, workers), np.bool_), np.zeros((chunks, steps), np.int64)
    full, made = np.zeros(chunks, np.int64), np.zeros(chunks, np.int64)  # steps that all have pushed; updates
    sending, in_free = np.zeros(nodes, np.bool_), np.zeros(nodes)
    sent, received = np.zeros(nodes), np.zeros(nodes)
    busy, serving, processor = np.zeros(workers), np.zeros(servers), np.zeros(servers)
    finished, ends = np.zeros(workers), np.zeros(steps)
    room = 2 * nodes + 2
    times, who, events = np.empty(room), np.empty(room, np.int64), 0
    last = layers - 1
    while bounds[last] == bounds[last + 1]:
        last -= 1
    for w in range(workers):
        free_at[w], worked = _work(w, 0, micro, seconds, slower[w], jitter, seed, 0.0, here[w], exists[w])
        busy[w] += worked
        cursor[w], left[w] = last, chunks
        events = push(times, who, events, exists[w, last], 4 * w + READY)
    while events > 0:
        now, what, value = times[0], who[0] % 4, who[0] // 4
        events = pop(times, who, events)
        node = value
        if what == READY:
            w, layer = value, cursor[value]
            chunk[w, layer] = bounds[layer]
            below[w, layer] = NONE
            if top[w] == NONE:
                top[w] = tail[w] = layer
            elif forward_first:
                below[w, layer], top[w] = top[w], layer
            else:
                below[w, tail[w]], tail[w] = layer, layer
            layer -= 1
            while layer >= 0 and bounds[layer] == bounds[layer + 1]:
                layer -= 1  # a layer without parameters
            cursor[w] = layer
            if layer >= 0:
                events = push(times, who, events, exists[w, layer], 4 * w + READY)
        elif what == RELEASE:
            s, first = value, made_first[value] % batches
            batch = next_batch[s, first]
            releases += 1
            key = np.float64(batch // (workers + 1) if forward_first else releases)
            waiting[s] = push(keys[s], queue[s], waiting[s], key, batch)
            made_first[s] += 1
            if made_first[s] < made_last[s]:
                first = made_first[s] % batches
                events = push(times, who, events, over[s, first], 4 * s + RELEASE)
            node = workers + s
        else:
            sending[node] = False
        if sending[node]:
            continue

        if node < workers:
            w, layer = node, top[node]
            if layer == NONE:
                continue
            c = chunk[w, layer]
            chunk[w, layer] += 1
            if chunk[w, layer] == bounds[layer + 1]:
                top[w] = below[w, layer]
            s = owner[c]
            target = workers + s
        else:
            s = node - workers
            if waiting[s] == 0:
                continue
            c = queue[s, 0] // (workers + 1)
            queue[s, 0] -= 1
            if queue[s, 0] % (workers + 1) == 0:
                waiting[s] = pop(keys[s], queue[s], waiting[s])
            w = np.int64(line[c, head[c] % workers])
            head[c] += 1
            target = w
        sending[node] = True
        events = push(times, who, events, now + taken[c], 4 * node + FREE)
        end = max(now + latency, in_free[target]) + taken[c]
        in_free[target] = end
        sent[node] += sizes[c]
        received[target] += sizes[c]

        if node < workers:  # a gradient comes to the server: whom does it answer?
            arrived[c, clock[w]] += 1
            owed[c, w] = True
            first, stop = w, w + 1
            while full[c] < steps and arrived[c, full[c]] == workers:
                full[c] += 1
                first, stop = 0, workers
            many = 0
            for v in range(first, stop):
                if owed[c, v] and (bound < 0 or clock[v] + 1 - bound <= full[c]):
                    owed[c, v] = False
                    line[c, end_of_line[c] % workers] = v
                    end_of_line[c] += 1
                    many += 1
            if many:
                lasts = updates[c] * stretch(jitter, seed, workers * layers + c, U, made[c])
                made[c] += 1
                processor[s] = max(end, processor[s]) + lasts
                serving[s] += lasts
                if made_first[s] == made_last[s]:
                    events = push(times, who, events, processor[s], 4 * s + RELEASE)
                over[s, made_last[s] % batches] = processor[s]
                next_batch[s, made_last[s] % batches] = c * (workers + 1) + many
                made_last[s] += 1
        else:  # weights come to a worker; its link is a queue, so the last to be sent is the last to be there
            here[w, layer_of[c]] = end
            left[w] -= 1
            if left[w] == 0:
                ends[clock[w]] = max(ends[clock[w]], end)
                finished[w] = end
                clock[w] += 1
                if clock[w] < steps:
                    free_at[w], worked = _work(
                        w, clock[w], micro, seconds, slower[w], jitter, seed, free_at[w], here[w], exists[w]
                    )
                    busy[w] += worked
                    cursor[w], left[w] = last, chunks
                    events = push(times, who, events, exists[w, last], 4 * w + READY)
    return finished, busy, ends, serving, sent, received


@jit
def colocate(workers, steps, micro, seconds, slower, taken, latency, forward_first, jitter, seed):
    """Train with every worker as the server of its share of each layer, synchronously.

    Each layer is dealt finely over all workers: what a node sends of it is spread evenly over all others. No link is
    therefore offered more than its bandwidth on the way in (the mean of what the others send), so only the links out
    queue, and a node's messages of one layer go as one. A share is updated beside the worker's own layers, by a thread
    that costs it nothing.

    Parameters
    ----------
    workers, steps, micro, seconds, slower, latency, forward_first, jitter, seed
        As for `serve`; the last column of `seconds` is of the update of a whole layer.
    taken : float64[layers]
        Seconds of a link for a node's messages of one layer to all others, one way; negative: nothing to exchange.

    Returns
    -------
    tuple
        Busy seconds of each worker; end of each step; seconds of updates of each worker's shares.
    """
    layers, held = len(seconds), 0
    exists, here, free_at = np.zeros((workers, layers)), np.zeros(layers), np.zeros(workers)
    busy, serving, processor, ends = np.zeros(workers), np.zeros(workers), np.zeros(workers), np.zeros(steps)
    keys, queue = np.empty((workers, 2 * layers + 1)), np.empty((workers, 2 * layers + 1), np.int64)
    waiting, sending, cursor = np.zeros(workers, np.int64), np.zeros(workers, np.bool_), np.zeros(workers, np.int64)
    count, latest = np.zeros((layers, 2), np.int64), np.zeros((layers, 2))  # of gradients and weights: who has sent
    room = workers * (layers + 3) + layers
    times, who, events = np.empty(room), np.empty(room, np.int64), 0
    if workers == 1:
        latency = 0.0
    last = 0
    for layer in range(layers):
        if taken[layer] >= 0:
            last, held = layer, held + 1
    step, complete, now, numbers = 0, held, 0.0, 0
    while True:
        if complete == held:  # all weights are on their way: the next step
            if step == steps:
                break
            for w in range(workers):
                free_at[w], worked = _work(
                    w, step, micro, seconds, slower[w], jitter, seed, free_at[w], here, exists[w]
                )
                busy[w] += worked
                cursor[w] = last
                events = push(times, who, events, max(exists[w, last], now), 4 * w + READY)
            count[:] = 0
            latest[:] = 0.0
            complete = 0
        now, what, value = times[0], who[0] % 4, who[0] // 4
        events = pop(times, who, events)
        if what == SUMMED:
            for w in range(workers):
                lasts = slower[w] * seconds[value, U] / workers
                lasts *= stretch(jitter, seed, w * layers + value, U, step)
                processor[w] = max(now, processor[w]) + lasts
                serving[w] += lasts
                events = push(times, who, events, processor[w], 4 * (w * layers + value) + RELEASE)
            continue
        if what == FREE:
            w = value
            sending[w] = False
        else:
            if what == READY:
                w, layer, way = value, cursor[value], 0
            else:
                w, layer, way = value // layers, value % layers, 1
            numbers += 1
            key = np.float64(step * layers + layer if forward_first else numbers)
            waiting[w] = push(keys[w], queue[w], waiting[w], key, 2 * layer + way)
            if way == 0:
                layer -= 1
                while layer >= 0 and taken[layer] < 0:
                    layer -= 1
                cursor[w] = layer
                if layer >= 0:
                    events = push(times, who, events, max(exists[w, layer], now), 4 * w + READY)
        if sending[w] or waiting[w] == 0:
            continue
        layer, way = queue[w, 0] // 2, queue[w, 0] % 2
        waiting[w] = pop(keys[w], queue[w], waiting[w])
        sending[w] = True
        end = now + taken[layer]
        events = push(times, who, events, end, 4 * w + FREE)
        latest[layer, way] = max(latest[layer, way], end + latency)
        count[layer, way] += 1
        if count[layer, way] == workers:
            if way == 0:
                events = push(times, who, events, latest[layer, 0], 4 * layer + SUMMED)
            else:
                here[layer] = latest[layer, 1]
                ends[step] = max(ends[step], here[layer])
                complete += 1
                step += complete == held
    return busy, ends, serving


@jit
def all_reduce(workers, steps, micro, seconds, slower, taken, latency, jitter, seed):
    """Train with a ring all-reduce of each layer's gradient, one layer after the other, and an update by everybody.

    A layer goes round in 2 (workers - 1) hops of 1 / workers of its bytes, each over the link to the right. A worker
    begins it when its own gradient exists and its part in the layer before it is over; it then updates what has come
    until it can begin the next step.

    Parameters
    ----------
    workers, steps, micro, seconds, slower, latency, jitter, seed
        As for `serve`; the last column of `seconds` is of the update.
    taken : float64[layers]
        Seconds of a link for one hop; negative: nothing to exchange.

    Returns
    -------
    tuple
        When each worker had made its last update; busy seconds of each worker; end of each step.

    Notes
    -----
    With a the seconds of a hop and b the latency, send h of worker w begins at S(h, w) = max(S(h-1, w) + a,
    S(h-1, w-1) + a + b), hence S(h, w) = h a + max over j <= h of S(0, w-j) + j b. Since b >= 0 the farthest way
    round counts for each worker, and the maximum is over a whole circle, cut in two at one place.
    """
    layers = len(seconds)
    exists, nothing, free_at = np.zeros((workers, layers)), np.zeros(layers), np.zeros(workers)
    busy, ends, updated = np.zeros(workers), np.zeros(steps), np.zeros(workers)
    link, begin = np.zeros(workers), np.zeros(workers)  # when a worker's part in a layer is over, and begins
    before, after = np.zeros(workers + 1), np.zeros(workers + 1)
    for step in range(steps):
        for w in range(workers):
            free_at[w], worked = _work(w, step, micro, seconds, slower[w], jitter, seed, updated[w], nothing, exists[w])
            busy[w] += worked
            updated[w] = free_at[w]
        for layer in range(layers - 1, -1, -1):
            if taken[layer] < 0:
                continue
            for w in range(workers):
                link[w] = max(exists[w, layer], link[w])
            if workers > 1:
                hops = 2 * (workers - 1)
                # begin[w]: of its last send; the maximum is over senders w - (hops - 1) ... on a whole circle.
                before[0] = after[workers] = -np.inf
                for w in range(workers):
                    before[w + 1] = max(before[w], link[w] - w * latency)
                for w in range(workers - 1, -1, -1):
                    after[w] = max(after[w + 1], link[w] - w * latency)
                for w in range(workers):
                    far = (w - (hops - 1)) % workers
                    start = max(after[far], before[far] - workers * latency)
                    begin[w] = start + (hops - 1 + far) * latency + (hops - 1) * taken[layer]
                for w in range(workers):
                    link[w] = taken[layer] + max(begin[w], begin[w - 1 if w else workers - 1] + latency)
            for w in range(workers):
                lasts = slower[w] * seconds[layer, U] * stretch(jitter, seed, w * layers + layer, U, step)
                updated[w] = max(updated[w], link[w]) + lasts
                busy[w] += lasts
        ends[step] = updated.max()
    return updated, busy, ends


# One layer, one worker, one server.
_ONE, _NUMBER, _LAYER = np.ones(1), np.ones(1, np.int64), np.ones((1, 4))
declare(
    "data_parallel_clock",
    serve,
    1,
    1,
    1,
    1,
    _LAYER,
    _ONE,
    np.arange(2),
    _ONE,
    _ONE,
    _ONE,
    _NUMBER - 1,
    0.0,
    0,
    True,
    0.0,
    0,
)
declare("data_parallel_clock", colocate, 1, 1, 1, _LAYER, _ONE, _ONE, 0.0, True, 0.0, 0)
declare("data_parallel_clock", all_reduce, 1, 1, 1, _LAYER, _ONE, _ONE, 0.0, 0.0, 0)
