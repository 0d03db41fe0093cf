"""BSP, SSP, ASP and backup workers as one rule: under any order of pushes nobody breaks the bound or waits for ever."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringtmp.ps.consistency import ANY, Consistency, VectorClock

STEPS = 12


class Course:
    """Workers that push step after step in any order, each going on with its answer; `start` steps were made before."""

    def __init__(self, rule: Consistency, workers: int, start: int = 0) -> None:
        self.rule, self.start = rule, start
        self.clock = VectorClock(range(workers), start)
        self.next = dict.fromkeys(range(workers), start)
        self.owed: dict[int, int] = {}
        self.leads: list[int] = []  # of each answer: steps ahead of the slowest worker

    def able(self) -> list[int]:
        """Who may push: has its answer, and is not at the end."""
        return [w for w, step in self.next.items() if w not in self.owed and step < self.start + STEPS]

    def push(self, worker: int) -> set[int]:
        """Push a step, and answer all who may be answered then."""
        step = self.next[worker]
        self.clock.tick(worker, step + 1)
        self.next[worker] += 1
        self.owed[worker] = step
        return self.settle()

    def settle(self) -> set[int]:
        done = {w for w, step in self.owed.items() if self.rule.may_read(self.clock, step)}
        for worker in sorted(done):
            step = self.owed.pop(worker)
            self.rule.check(self.clock, worker, step)
            self.leads.append(step - (min(self.next.values()) - 1))
        return done

    def drop(self, worker: int) -> set[int]:
        self.clock.drop(worker)
        self.owed.pop(worker, None)
        del self.next[worker]
        return self.settle()


RULES = {"bsp": (0, 0), "ssp 1": (1, 0), "ssp 3": (3, 0), "asp": (ANY, 0), "backup 1": (0, 1), "backup 2": (0, 2)}
MANY = settings(max_examples=40, deadline=None)


@pytest.mark.parametrize("name", RULES)
@MANY
@given(data=st.data())
def test_any_order(name, data):
    """All come to the end, none further ahead than the bound."""
    bound, backup = RULES[name]
    workers, start = data.draw(st.integers(backup + 1, 5)), data.draw(st.integers(0, 3))
    course = Course(Consistency(bound, backup), workers, start)
    while set(course.next.values()) != {start + STEPS}:
        able = course.able()
        assert able, f"stuck: {course.next}, owed {course.owed}"
        course.push(data.draw(st.sampled_from(able)))
    assert not course.owed
    assert len(course.leads) == workers * STEPS
    if bound != ANY and not backup:
        assert max(course.leads) <= bound


@pytest.mark.parametrize("workers", [1, 2, 5])
@MANY
@given(st.randoms())
def test_bsp_answers_all_at_once(workers, random):
    """With the last gradient of a step, and not before."""
    course = Course(Consistency(0), workers)
    for _ in range(STEPS):
        order = random.sample(range(workers), workers)
        assert [course.push(worker) for worker in order] == [set()] * (workers - 1) + [set(order)]


@pytest.mark.parametrize("bound", [0, 1, 3, 5])
def test_how_far_one_may_go_ahead(bound):
    """Exactly `bound` steps, while another has pushed nothing; one push of that one is worth one step."""
    course = Course(Consistency(bound), 3)
    for _ in range(bound):
        assert course.push(0) == {0}
        assert course.push(1) == {1}
    assert course.push(0) == set()
    assert course.able() == [1, 2]
    assert course.push(1) == set()
    assert course.push(2) == {0, 1, 2}
    assert course.push(0) == set()
    assert max(course.leads, default=0) == bound


def test_asp_waits_for_nobody():
    course = Course(Consistency(ANY), 4)
    assert [course.push(2) for _ in range(STEPS)] == [{2}] * STEPS
    assert course.leads == list(range(1, STEPS + 1))


@pytest.mark.parametrize(("workers", "backup"), [(2, 1), (4, 1), (4, 3), (5, 2)])
def test_backup_workers_are_not_waited_for(workers, backup):
    """The step goes on with the gradient before the slowest `backup`; who comes later is answered at once."""
    course = Course(Consistency(0, backup), workers)
    first = list(range(workers - backup))
    for _ in range(3):
        assert [course.push(worker) for worker in first] == [set()] * (len(first) - 1) + [set(first)]
    for late in range(workers - backup, workers):
        assert course.push(late) == {late}


@pytest.mark.parametrize("name", RULES)
def test_who_leaves_is_not_waited_for(name):
    bound, backup = RULES[name]
    course = Course(Consistency(bound, backup), 4)
    while set(course.able()) - {3}:
        course.push(min(set(course.able()) - {3}))
    assert bool(course.owed) == (bound != ANY and not backup)
    held = set(course.owed)
    assert course.drop(3) >= held
    while course.able():
        course.push(course.able()[0])
    assert set(course.next.values()) == {STEPS}
    for worker in (0, 1):
        course.drop(worker)
    course.next[2], course.clock.ticks[2] = 0, 0
    assert [course.push(2) for _ in range(STEPS)] == [{2}] * STEPS  # alone, even with more backup workers than others


def test_vector_clock():
    clock = VectorClock([3, 5, 8], 4)
    assert clock.least() == 4
    clock.tick(5, 6)
    assert (clock.least(), clock.reached(4), clock.reached(5), clock.reached(6), clock.reached(7)) == (4, 3, 1, 1, 0)
    clock.tick(3, 5)
    clock.tick(8, 9)  # steps may be passed over
    assert (clock.least(), clock.reached(6)) == (5, 2)
    for steps in (4, 5):
        with pytest.raises(AssertionError):
            clock.tick(3, steps)  # nobody pushes a step twice
    clock.drop(3)
    clock.drop(3)
    assert (clock.least(), clock.ticks) == (6, {5: 6, 8: 9})


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_an_answer_that_breaks_the_bound_is_refused(bound):
    clock, rule = VectorClock([1, 2], 0), Consistency(bound)
    clock.tick(1, bound + 5)
    clock.tick(2, 4)
    rule.check(clock, 1, bound + 3)
    assert rule.may_read(clock, bound + 3)
    assert not rule.may_read(clock, bound + 4)
    with pytest.raises(AssertionError, match=f"worker 1 would read {bound + 1} steps ahead, bound {bound}"):
        rule.check(clock, 1, bound + 4)
    for free in (Consistency(ANY), Consistency(0, backup=1)):
        free.check(clock, 1, bound + 4)
        assert free.may_read(clock, bound + 4)
