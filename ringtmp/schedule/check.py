"""Proves a plan: every action exactly once, in an order that gives the right sums, and no deadlock.

Two mistakes of other checkers are avoided. A checker that compares sets of actions overlooks an action that stands
twice: here actions are counted. A checker in which every send completes at once overlooks ranks that wait for each
other's receives: here a send completes only once its receive is posted (a rendezvous).
"""

from collections import Counter

from ringtmp.schedule.plan import Action, Plan, peak_in_flight


class PlanError(Exception):
    """A plan that must not be executed; the message names the rank and the action."""


def check(plan: Plan) -> list[int]:
    """Raise `PlanError` unless executing `plan` ends, with every gradient summed in ascending micro-batch order.

    1. Each (stage, micro-batch) has one F, one I and one W (B is both) on the stage's rank, and each stage one U, its
       last action. A plan without any I, W, B and U is an evaluation and needs the F's only. Every rank has as many
       stages.
    2. On a stage F, I and W each run in ascending order (messages of one kind are first in, first out, and sums have a
       fixed order), and F before I before W of a micro-batch.
    3. The ranks, each working through its list and blocking on every receive and send, come to the end (`_run`).

    Returns
    -------
    list of int
        Peak number of micro-batches in flight on each rank, over its stages.
    """
    if plan.stages % len(plan.ranks):
        raise PlanError(f"{plan.stages} stages cannot be dealt evenly over {len(plan.ranks)} ranks")
    training = any(action.kind != "F" for actions in plan.ranks for action in actions)
    _check_once(plan, training)
    for rank, actions in enumerate(plan.ranks):
        _check_order(rank, actions)
    _run(plan, training)
    return [peak_in_flight(plan, rank) for rank in range(len(plan.ranks))]


def _halves(action: Action) -> list[Action]:
    """The I and the W of a B; any other action by itself."""
    return [action._replace(kind=kind) for kind in "IW"] if action.kind == "B" else [action]


def _check_once(plan: Plan, training: bool) -> None:
    seen: Counter[Action] = Counter()
    for rank, actions in enumerate(plan.ranks):
        for action in actions:
            if not 0 <= action.stage < plan.stages or plan.owner(action.stage) != rank:
                raise PlanError(f"rank {rank}: {action} is not a stage of this rank")
            if action.kind != "U" and not 0 <= action.micro_batch < plan.micro_batches:
                raise PlanError(f"rank {rank}: {action}: there are {plan.micro_batches} micro-batches")
            seen.update(_halves(action))
    for stage in range(plan.stages):
        wanted = [Action(stage, kind, j) for kind in ("FIW" if training else "F") for j in range(plan.micro_batches)]
        for action in wanted + [Action(stage, "U")] * training:
            if seen[action] != 1:
                raise PlanError(f"rank {plan.owner(stage)}: {action} stands {seen[action]} times, expected once")


def _check_order(rank: int, actions: tuple[Action, ...]) -> None:
    done: Counter[tuple[int, str]] = Counter()  # how many of each kind, so also which comes next
    for action in (half for whole in actions for half in _halves(whole)):
        stage, kind, number = action
        if done[stage, "U"]:
            raise PlanError(f"rank {rank}: {action} comes after the update of its stage")
        if kind != "U" and number != done[stage, kind]:
            raise PlanError(f"rank {rank}: {action} is out of order, expected {stage}{kind}{done[stage, kind]}")
        before = {"I": "F", "W": "I"}.get(kind)
        if before and done[stage, before] <= number:
            raise PlanError(f"rank {rank}: {action} comes before {stage}{before}{number}")
        done[stage, kind] += 1


class _Stage:
    """What has happened on a stage, as counts; every kind runs in ascending order."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.done = dict.fromkeys("FIWU", 0)
        self.arrived = {"F": 0, "I": 0}  # activations and gradients received
        self.freed = 0  # slots given back

    def posted(self, kind: str) -> int:
        """How many receives of activations (F) or gradients (I) have been posted so far."""
        return self.freed + self.slots if kind == "F" else self.done["F"]


def _run(plan: Plan, training: bool) -> None:
    """Run the plan with counts for data. Which rank moves first does not matter (a Kahn network): the end is the same.

    F waits for its activation, I and B for their gradient. The result is then sent (that of B after its W), and the
    sender blocks until the receive is posted. Receives of activations are posted ahead into slots, one more for each
    stage than it ever has in flight (the engine has as many or more, which can only help); a slot is given back by W
    (in an evaluation: by F, once its send is through). The receive of a gradient is posted by F. What a stage hands to
    another one of its own rank is not sent. Labels, from the first stage to the last, are left out: the last stage has
    as many buffers for them as the first has slots, and posts each again with its F, so none ever waits.
    """
    stages = [_Stage(peak_in_flight(plan, plan.owner(stage), stage) + 1) for stage in range(plan.stages)]
    todo = plan.ranks
    place = [0] * len(plan.ranks)
    sending = [False] * len(plan.ranks)
    last = plan.stages - 1

    def move(rank: int) -> bool:
        """Carry the rank's current action one move further; False if it is blocked."""
        stage, kind, number = todo[rank][place[rank]]
        here = stages[stage]
        if not sending[rank]:
            if kind == "F" and stage > 0 and here.arrived["F"] <= number:
                return False
            if kind in "IB" and stage < last and here.arrived["I"] <= number:
                return False
            for half in _halves(todo[rank][place[rank]]):
                here.done[half.kind] += 1
            here.freed += kind in "WB"
            sending[rank] = True
        target = stage + {"F": 1, "I": -1, "B": -1}.get(kind, last + 2)
        if 0 <= target <= last:
            message = "F" if kind == "F" else "I"
            if plan.owner(target) != rank and stages[target].posted(message) <= number:
                return False
            stages[target].arrived[message] += 1
        here.freed += kind == "F" and not training
        sending[rank] = False
        place[rank] += 1
        return True

    moving = True
    while moving:
        moving = False
        for rank in range(len(plan.ranks)):
            while place[rank] < len(todo[rank]) and move(rank):
                moving = True
    stuck = [
        f"rank {rank} at {todo[rank][place[rank]]}, {'its send' if sending[rank] else 'its input'} never comes through"
        for rank in range(len(plan.ranks))
        if place[rank] < len(todo[rank])
    ]
    if stuck:
        raise PlanError(f"deadlock: {'; '.join(stuck)}")
