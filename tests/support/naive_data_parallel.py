"""Slow twins of the data-parallel clocks in `ringtmp.simulate`: every message, hop and action is an event."""

import heapq
import itertools

from ringtmp.emulate.jitter import stretch

F, I, W, U = range(4)  # noqa: E741


class Clock:
    """Calls functions at their times."""

    def __init__(self):
        self.now, self.heap, self.tickets = 0.0, [], itertools.count()

    def at(self, time, what, *arguments):
        heapq.heappush(self.heap, (time, next(self.tickets), what, arguments))

    def run(self):
        while self.heap:
            self.now, _, what, arguments = heapq.heappop(self.heap)
            what(*arguments)


class Link:
    """One way of a node's link: carries one message at a time, of those that wait the one with the least key."""

    def __init__(self, clock):
        self.clock, self.waiting, self.taken = clock, [], False

    def put(self, key, lasts, *then):
        heapq.heappush(self.waiting, (key, next(self.clock.tickets), lasts, then))
        self.start()

    def start(self):
        if self.waiting and not self.taken:
            _, _, lasts, then = heapq.heappop(self.waiting)
            self.taken = True
            self.clock.at(self.clock.now + lasts, self.free)
            then[0](*then[1:])

    def free(self):
        self.taken = False
        self.start()


class Worker:
    """Runs F, I and W of one micro-batch after the other; tells when a gradient exists; waits for weights."""

    def __init__(self, clock, number, steps, micro, seconds, slower, jitter, seed, exists):
        self.clock, self.number, self.seconds, self.exists = clock, number, seconds, exists
        self.draw, self.slower, self.busy = (jitter, seed), slower, 0.0
        layers = range(len(seconds))
        self.todo = []
        for batch in range(steps * micro):
            self.todo += [(F, layer, batch, batch // micro if batch % micro == 0 else 0) for layer in layers]
            for layer in reversed(layers):
                self.todo += [(I, layer, batch, 0), (W, layer, batch, batch % micro == micro - 1)]
        self.version = [0] * len(seconds)
        self.working = False
        self.micro = micro

    def lasts(self, kind, layer, batch):
        return (
            self.slower
            * self.seconds[layer][kind]
            * stretch(*self.draw, self.number * len(self.seconds) + layer, kind, batch)
        )

    def advance(self):
        if self.working or not self.todo:
            return
        kind, layer, batch, what = self.todo[0]
        if kind == F and self.version[layer] < what:
            return
        lasts = self.lasts(kind, layer, batch)
        self.busy += lasts
        self.working = True
        self.clock.at(self.clock.now + lasts, self.done)

    def done(self):
        kind, layer, batch, what = self.todo.pop(0)
        self.working = False
        if kind == W and what:
            self.exists(self, layer, batch // self.micro)
        self.advance()

    def got(self, layer):
        self.version[layer] += 1
        self.advance()


def serve(
    workers,
    servers,
    steps,
    micro,
    seconds,
    slower,
    layer_of,
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
    """Does the same as `ringtmp.simulate.server_clock.serve`; the parameters are fields of `Workers` and `Servers`."""
    clock, chunks, layers = Clock(), len(sizes), len(seconds)
    # What each node, server, chunk and worker has done so far.
    links = [Link(clock) for _ in range(workers + servers)]
    inbox, processor = [0.0] * (workers + servers), [0.0] * servers
    sent, received = [0.0] * (workers + servers), [0.0] * (workers + servers)
    serving, made = [0.0] * servers, [0] * chunks
    pushed = [[0] * workers for _ in range(chunks)]
    owed = [set() for _ in range(chunks)]
    missing = [
        [len([c for c in range(chunks) if layer_of[c] == layer]) for layer in range(layers)] for _ in range(workers)
    ]
    ends, finished, left = [0.0] * steps, [0.0] * workers, [chunks * steps] * workers
    order = itertools.count()

    # A message leaves its link, its first bit arrives, and its last bit calls `then`.
    def send(source, target, key, c, then):
        def begin():
            sent[source] += sizes[c]
            clock.at(clock.now + latency, first_bit, target, c, then)

        links[source].put(key if forward_first else next(order), taken[c], begin)

    def first_bit(target, c, then):
        inbox[target] = max(clock.now, inbox[target]) + taken[c]
        received[target] += sizes[c]
        clock.at(inbox[target], then)

    # A layer's gradient exists: its chunks go to their servers, where one update answers all workers due.
    def exists(worker, layer, step):
        w = worker.number
        for c in range(chunks):
            if layer_of[c] == layer:
                send(w, workers + owner[c], c, c, lambda c=c: gradient(w, c))

    def gradient(w, c):
        pushed[c][w] += 1
        owed[c].add(w)
        due = [v for v in sorted(owed[c]) if bound < 0 or min(pushed[c]) >= pushed[c][v] - bound]
        owed[c] -= set(due)
        if due:
            s = owner[c]
            lasts = updates[c] * stretch(jitter, seed, workers * layers + c, U, made[c])
            made[c] += 1
            serving[s] += lasts
            processor[s] = max(clock.now, processor[s]) + lasts
            clock.at(processor[s], answer, c, due)

    def answer(c, due):
        for v in due:
            send(workers + owner[c], v, c, c, lambda v=v: weights(v, c))

    # A chunk's new weights arrive: a step ends with a worker's last chunk, a layer is ready with its last one.
    def weights(w, c):
        layer = layer_of[c]
        missing[w][layer] -= 1
        left[w] -= 1
        if left[w] % chunks == 0:
            step = steps - 1 - left[w] // chunks
            ends[step] = max(ends[step], clock.now)
            finished[w] = clock.now
        if missing[w][layer] == 0:
            missing[w][layer] = layer_of.count(layer)
            people[w].got(layer)

    # Begin all workers, and run until no event is left.
    people = [Worker(clock, w, steps, micro, seconds, slower[w], jitter, seed, exists) for w in range(workers)]
    for worker in people:
        worker.advance()
        worker.version = [0 if layer in layer_of else steps for layer in range(layers)]
    clock.run()
    return finished, [worker.busy for worker in people], ends, serving, sent, received


def colocate(workers, steps, micro, seconds, slower, sizes, overhead, bandwidth, latency, forward_first, jitter, seed):
    """Does the same as `ringtmp.simulate.colocated_clock.colocate`, every message to every other worker by itself."""
    clock, layers = Clock(), len(seconds)
    links = [Link(clock) for _ in range(workers)]
    processor, serving, sent, ends = [0.0] * workers, [0.0] * workers, [0.0] * workers, [0.0] * steps
    arrived, order = {}, itertools.count()

    def spread(w, step, layer, way, then):
        """Send a share to each other worker, without another layer in between."""
        others = workers - 1
        lasts = others * (overhead + sizes[layer] / workers / bandwidth)

        def begin():
            sent[w] += others * sizes[layer] / workers
            clock.at(clock.now + lasts + (latency if others else 0.0), came, step, layer, way, then)

        links[w].put((step, layer) if forward_first else next(order), lasts, begin)

    def came(step, layer, way, then):
        arrived[step, layer, way] = arrived.get((step, layer, way), 0) + 1
        if arrived[step, layer, way] == workers:
            then(step, layer)

    def exists(worker, layer, step):
        if sizes[layer]:
            spread(worker.number, step, layer, "gradient", summed)

    def summed(step, layer):
        for w in range(workers):
            lasts = slower[w] * seconds[layer][U] / workers * stretch(jitter, seed, w * layers + layer, U, step)
            processor[w] = max(clock.now, processor[w]) + lasts
            serving[w] += lasts
            clock.at(processor[w], spread, w, step, layer, "weights", complete)

    def complete(step, layer):
        ends[step] = max(ends[step], clock.now)
        for worker in people:
            worker.got(layer)

    people = [Worker(clock, w, steps, micro, seconds, slower[w], jitter, seed, exists) for w in range(workers)]
    for worker in people:
        worker.version = [0 if size else steps for size in sizes]
        worker.advance()
    clock.run()
    return [worker.busy for worker in people], ends, serving, sent


def all_reduce(workers, steps, micro, seconds, slower, sizes, overhead, bandwidth, latency, jitter, seed):
    """Does the same as `ringtmp.simulate.all_reduce_clock.all_reduce`, hop by hop."""
    layers = len(seconds)
    ready, busy, over, sent, ends = [0.0] * workers, [0.0] * workers, [0.0] * workers, [0.0] * workers, []
    for step in range(steps):
        exists = [[0.0] * layers for _ in range(workers)]
        for w in range(workers):
            clock = Clock()
            clock.now = ready[w]

            def note(worker, layer, step, times=exists[w]):
                times[layer] = worker.clock.now

            worker = Worker(clock, w, steps, micro, seconds, slower[w], jitter, seed, note)
            worker.version = [steps] * layers
            worker.todo = worker.todo[step * 3 * micro * layers : (step + 1) * 3 * micro * layers]
            worker.advance()
            clock.run()
            busy[w] += worker.busy
            ready[w] = clock.now
        for layer in reversed(range(layers)):
            if not sizes[layer]:
                continue
            part = sizes[layer] / workers
            lasts = overhead + part / bandwidth
            free = here = [max(over[w], exists[w][layer]) for w in range(workers)]
            for _ in range(2 * (workers - 1)):
                start = [max(free[w], here[w]) for w in range(workers)]
                free = [start[w] + lasts for w in range(workers)]
                here = [free[w - 1] + latency for w in range(workers)]
                sent = [sent[w] + part for w in range(workers)]
            over = [max(free[w], here[w]) for w in range(workers)]
            for w in range(workers):
                lasts = slower[w] * seconds[layer][U] * stretch(jitter, seed, w * layers + layer, U, step)
                ready[w] = max(ready[w], over[w]) + lasts
                busy[w] += lasts
        ends.append(max(ready))
    return ready, busy, ends, sent
