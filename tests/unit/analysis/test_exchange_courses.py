"""What traces of `ps` tell of random courses of servers and workers, beside slow plain loops."""

import heapq
import itertools

import numpy as np
import pytest
from events import CAUSES, frame, nanoseconds, table

from ringtmp.analysis import lead, servers, staleness, transfers, waits
from ringtmp.analysis.steady import steady


class Course:
    """Workers, servers and messages of random lasting, in whole nanoseconds: the events that `ps` would note."""

    def __init__(self, workers=3, serving=2, chunks=3, steps=5, bound=0, backup=0, seed=0):
        self.random, self.bound, self.steps, self.chunks = np.random.default_rng(seed), bound, steps, chunks
        self.backup = backup
        self.rows, self.queue, self.number = [], [], itertools.count()
        self.workers = [serving + each for each in range(workers)]  # serving 0: every rank does both
        self.owner = [chunk % (serving or workers) for chunk in range(chunks)]
        self.free, self.version = dict.fromkeys(self.owner, 0), [0] * chunks
        self.newest = {(worker, chunk): -1 for worker in self.workers for chunk in range(chunks)}
        self.pending, self.answers, self.parked = [[] for _ in range(chunks)], {}, {}
        runs = {worker: self.work(worker) for worker in self.workers}
        for worker in self.workers:
            self.parked[worker] = next(runs[worker])
        while self.queue:
            at, _, worker, chunk, step, version, answered = heapq.heappop(self.queue)
            if not answered:
                self.serve(at, worker, chunk, step, version)
                continue
            self.answers[worker, chunk, step] = at, version
            if self.parked.get(worker) == (chunk, step):
                self.parked[worker] = next(runs[worker], None)
        roles = "b" * workers if not serving else "s" * serving + "w" * workers
        consistency = {0: "bsp", -1: "asp"}.get(bound, "ssp")
        self.ranks = table(roles, consistency, bound, wall=max(row[3] for row in self.rows))
        self.events = frame(self.rows).sample(frac=1, random_state=seed)

    def lasting(self, scale=1.0):
        return int(self.random.integers(0, 30 * scale))

    def put(self, at, *message):
        heapq.heappush(self.queue, (at, next(self.number), *message))

    def work(self, worker):
        slow, now = 1 + 2 * (worker == self.workers[-1]), 0
        used = [0] * self.chunks
        for step in range(self.steps + 1):
            for chunk in range(self.chunks):
                if step:
                    if (worker, chunk, step - 1) not in self.answers:
                        yield chunk, step - 1
                    came, used[chunk] = self.answers[worker, chunk, step - 1]
                    if came > now:
                        self.rows.append((worker, "wait", now, came, step - 1, chunk))
                    now = max(now, came) + 1
                    self.rows.append((worker, "U", now - 1, now, step - 1, chunk))
                if step < self.steps:
                    now = self.act(worker, "F", now, step, chunk, slow)
            for chunk in reversed(range(self.chunks if step < self.steps else 0)):
                now = self.act(worker, "I", now, step, chunk, slow)
                now = self.act(worker, "W", now, step, chunk, slow)
                server = self.owner[chunk]
                if server != worker:
                    self.rows.append((worker, "send", now, now + 1, step, chunk, server, 10 + chunk))
                self.put(now + (self.lasting() if server != worker else 0), worker, chunk, step, used[chunk], False)
        self.rows.append((worker, "wait", now, now + 5, self.steps, -1))

    def act(self, worker, kind, now, step, chunk, slow):
        end = now + slow * self.lasting()
        self.rows.append((worker, kind, now, end, step, chunk, -1, 0, -1, 0))
        return end

    def serve(self, at, worker, chunk, step, version):
        server = self.owner[chunk]
        now = max(at, self.free[server]) + 1
        size = 10 + chunk if server != worker else 0
        late = self.bound == 0 and step < self.version[chunk]
        self.rows.append((server, "receive", now - 1, now, step, chunk, worker, size, -1 if late else version))
        self.newest[worker, chunk] = step
        self.pending[chunk].append((worker, step))
        slowest = sorted(self.newest[each, chunk] for each in self.workers)[self.backup]
        if self.bound != 0 or (slowest == step and not late):
            self.version[chunk] += 1
            end = now + self.lasting(0.3)
            self.rows.append((server, "U", now, end, step, chunk, -1, 0, self.version[chunk]))
            now = end
        ready = [each for each in self.pending[chunk] if self.bound < 0 or slowest >= each[1] - self.bound]
        for worker, step in ready:
            self.pending[chunk].remove((worker, step))
            came = now
            if server != worker:
                self.rows.append((server, "send", now, now + 1, step, chunk, worker, 20 + chunk, self.version[chunk]))
                came = now + 1 + self.lasting()
                self.rows.append((worker, "receive", came - 1, came, step, chunk, server, 20 + chunk))
                now += 1
            self.put(came, worker, chunk, step, self.version[chunk], True)
        self.free[server] = now


CASES = [{"serving": serving, "bound": bound} for serving in (0, 1, 2) for bound in (0, 1, 3, -1)]
CASES += [{"serving": 2, "backup": 1, "workers": 4}, {"serving": 0, "backup": 1}]


@pytest.fixture(scope="module", params=itertools.product(CASES, range(2)), ids=str)
def course(request):
    case, seed = request.param
    return Course(**case, seed=seed)


def came_by_hand(course):
    """Gradients at servers: by worker and chunk the times by step."""
    found = {}
    for row in course.events.itertuples():
        if row.kind == "receive" and course.owner[row.stage] == row.rank:
            found.setdefault((row.peer, row.stage), {})[row.step] = row.end
    return found


def updates_by_hand(course):
    return [row for row in course.events.itertuples() if row.kind == "U" and row.version >= 0]


def test_waits_are_plain_loops(course):
    """Nanosecond by nanosecond; and they add up exactly."""
    came = came_by_hand(course)
    updated = {(row.stage, row.step): row.start for row in updates_by_hand(course)}

    def missing(worker, chunk, step, now):  # backup workers: the update went on without it
        return came[worker, chunk][step] > now and not (course.backup and updated[chunk, step] <= now)

    want = {worker: dict.fromkeys(CAUSES, 0) for worker in course.workers}
    for wait in course.events[course.events["kind"] == "wait"].itertuples():
        for now in range(wait.start, wait.end):
            cause, needed = "server" if wait.stage >= 0 else "other", wait.step - course.bound
            allowed = wait.stage < 0 or course.bound < 0 or needed < 0 or came[wait.rank, wait.stage][wait.step] > now
            if not allowed and any(missing(each, wait.stage, needed, now) for each in course.workers):
                cause = "bound" if course.bound else "slower"
            want[wait.rank][cause] += 1
    found = waits(course.events, course.ranks)
    assert nanoseconds(found) == {worker: tuple(want[worker].values()) for worker in course.workers}
    waited = course.events[course.events["kind"] == "wait"]
    total = (waited["end"] - waited["start"]).groupby(waited["rank"]).sum()
    assert (np.rint(found * 1e9).sum(axis=1) == total).all()
    assert (found["server"] > 0).all()


def flights_by_hand(course):
    """(worker, server, set of nanoseconds) of every message, by looking for its receive."""
    of = {kind: [row for row in course.events.itertuples() if row.kind == kind] for kind in ("send", "receive")}
    for sent in of["send"]:
        key = (sent.peer, sent.rank, sent.stage, sent.step)
        (got,) = [row for row in of["receive"] if (row.rank, row.peer, row.stage, row.step) == key]
        server = course.owner[sent.stage]
        yield sent.rank if sent.rank != server else got.rank, server, set(range(sent.start, got.end))


def test_transfers_are_plain_loops(course):
    flights, events = list(flights_by_hand(course)), course.events
    moved, served = transfers(course.events, course.ranks), servers(course.events, course.ranks)
    wall = course.ranks["ended"].iloc[0] - course.ranks["began"].iloc[0]
    for worker in course.workers:
        flying = set().union(*(each for rank, _, each in flights if rank == worker))
        idle = events[(events["rank"] == worker) & (events["kind"] == "wait")]
        idle = set().union(*(range(row.start, row.end) for row in idle.itertuples()))
        assert moved.loc[worker, "seconds"] == pytest.approx(len(flying) / 1e9)
        assert moved.loc[worker, "hidden"] == pytest.approx(len(flying - idle) / len(flying))
    assert served.index.tolist() == sorted(set(course.owner))
    for server in served.index:
        flying = set().union(*(each for _, rank, each in flights if rank == server))
        assert served.loc[server, "in_flight"] == pytest.approx(len(flying) / wall)
    count = course.chunks * course.steps * (1 if course.bound == 0 else len(course.workers))
    assert served["updates"].sum() == count
    assert (served[["busy", "waiting", "in_flight"]] <= 1).all().all()
    sends = events[events["kind"] == "send"]["bytes"].sum()
    assert moved[["pushed", "pulled"]].to_numpy().sum() == sends
    assert served[["received_per_s", "sent_per_s"]].to_numpy().sum() * wall / 1e9 == pytest.approx(sends)


def test_the_bound_is_kept(course):
    """And reached: the slow worker is waited for no sooner."""
    found, came = lead(course.events, course.ranks), came_by_hand(course)
    sends = course.events[(course.events["kind"] == "send")].itertuples()
    want = [
        [
            row.rank,
            row.stage,
            row.peer,
            row.step,
            row.step
            + 1
            - min(sum(at <= row.start for at in came[each, row.stage].values()) for each in course.workers),
        ]
        for row in sends
        if course.owner[row.stage] == row.rank
    ]
    assert found.to_numpy().tolist() == sorted(want, key=lambda row: (*row[:2], row[3], row[2]))
    if course.bound >= 0 and not course.backup:
        assert found["lead"].max() == course.bound


def test_staleness_of_gradients_is_a_plain_loop(course):
    """Under BSP it is 0, under SSP below what the bound allows."""
    found = staleness(course.events)
    want, updates = [], updates_by_hand(course)
    for row in course.events.itertuples():
        if row.kind == "receive" and row.version >= 0:
            mine = [each for each in updates if each.stage == row.stage and each.start >= row.end]
            taken = min(mine, key=lambda each: each.version).version - 1
            want.append([row.rank, row.stage, row.step, row.peer, taken - row.version])
    assert found.to_numpy().tolist() == sorted(want)
    assert (len(found) < course.chunks * course.steps * len(course.workers)) == bool(course.backup)
    assert (found["staleness"] >= 0).all()
    assert (found["staleness"].max() == 0) == (course.bound == 0)


def test_steady_state(course):
    """A worker's step ends when it has taken up the last weights of it; of all ranks, or of workers alone."""
    events, both = course.events, course.owner[0] in course.workers
    mine = events[events["rank"].isin(course.workers)]
    found, everyone = steady(mine, 1), steady(events, 1)
    assert found.first == everyone.first == 1
    assert found == everyone if both else found.busy > everyone.busy > 0
    if not both:
        last = mine[mine["kind"] == "U"].groupby("step")["end"].max()
        assert found.seconds == pytest.approx((last.iloc[-1] - last.iloc[0]) / (course.steps - 1) / 1e9)
