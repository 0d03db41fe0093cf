"""Runs a plan with real message queues and counted buffers: slow, obvious, and independent of `ringtmp.ring.check`.

What a stage hands on is the history of what was done to it, and messages carry no number, so a wrong order anywhere
shows at the end. A send blocks until its receiver has a buffer for it: receives of activations are posted ahead, as
many as the rank ever holds by its own list and one more; that of a gradient is posted by F.
"""

from collections import deque


class Wrong(Exception):  # noqa: N818
    """The plan does not do what one training step needs."""


def expected(stages: int, micro_batches: int, stage: int) -> list[tuple]:
    """What a stage's gradient must be made of: (activation, gradient) of each micro-batch, ascending."""
    rows = []
    for j in range(micro_batches):
        gradient = ("loss", "x", j, *range(stages))
        for later in range(stages - 1, stage, -1):
            gradient = ("back", later, gradient)
        rows.append((("x", j, *range(stage)), gradient))
    return rows


def run(plan) -> None:
    """Raise `Wrong` unless every rank comes to its end with the right sums, one update each, and nothing left over."""
    stages = plan.stages
    lists = []
    for rank, actions in enumerate(plan.ranks):
        if any(action.stage != rank for action in actions):
            raise Wrong(f"rank {rank} has an action of another stage")
        lists.append([(kind, a.micro_batch) for a in actions for kind in ("IW" if a.kind == "B" else a.kind)])
    activations, gradients = [deque() for _ in lists], [deque() for _ in lists]
    free = [_most_held(todo) + 1 for todo in lists]  # activation buffers
    free_labels = [free[-1]]  # on the last rank
    posted = [0] * stages  # receives of gradients
    programs = [_program(rank, stages, todo) for rank, todo in enumerate(lists)]
    sums: list = [None] * stages

    def serve(rank: int, request: tuple):
        """Do what a rank asks for and return (True, answer), or (False, None) if it has to wait."""
        what, *message = request
        if what in ("activation", "gradient"):
            queue = (activations if what == "activation" else gradients)[rank]
            return (True, queue.popleft()) if queue else (False, None)
        if what == "send right":
            if free[rank + 1] == 0:
                return False, None
            free[rank + 1] -= 1
            activations[rank + 1].append(message[0])
        elif what == "send label":
            if free_labels[0] == 0:
                return False, None
            free_labels[0] -= 1
        elif what == "send left":
            if posted[rank - 1] == 0:
                return False, None
            posted[rank - 1] -= 1
            gradients[rank - 1].append(message[0])
        elif what == "post":
            posted[rank] += 1
        elif what == "give back":
            free[rank] += 1
            free_labels[0] += rank == stages - 1
        return True, None

    def advance(rank: int, answer) -> None:
        try:
            requests[rank] = programs[rank].send(answer)
        except StopIteration as end:
            sums[rank] = end.value

    requests: list = [None] * stages
    for rank in range(stages):
        advance(rank, None)
    moved = True
    while moved:
        moved = False
        for rank in range(stages):
            while sums[rank] is None:
                served, answer = serve(rank, requests[rank])
                if not served:
                    break
                advance(rank, answer)
                moved = True
    if None in sums:
        raise Wrong(f"stuck: {requests}")
    if any(activations) or any(gradients):
        raise Wrong("a message was never received")
    for rank in range(stages):
        if sums[rank] != expected(stages, plan.micro_batches, rank):
            raise Wrong(f"rank {rank} sums {sums[rank]}")


def _most_held(todo) -> int:
    held = most = 0
    for kind, _ in todo:
        held += (kind == "F") - (kind == "W")
        most = max(most, held)
    return most


def _program(rank, stages, todo):
    """A rank as a generator: yields what it asks for, returns what its update was made of."""
    inputs, outputs, used, sums, updates = {}, {}, set(), [], 0
    for kind, j in todo:
        if updates:
            raise Wrong(f"rank {rank} goes on after its update")
        if kind == "F":
            if j in inputs:
                raise Wrong(f"rank {rank} runs F{j} again")
            inputs[j] = (yield ("activation",)) if rank else ("x", j)
            if rank == 0 < stages - 1:
                yield ("send label",)
            if rank < stages - 1:
                yield ("post",)
                yield "send right", (*inputs[j], rank)
        elif kind == "I":
            if j not in inputs or j in outputs:
                raise Wrong(f"rank {rank} runs I{j} without F, or again")
            outputs[j] = (yield ("gradient",)) if rank < stages - 1 else ("loss", *inputs[j], rank)
            if rank:
                yield "send left", ("back", rank, outputs[j])
        elif kind == "W":
            if j not in outputs or j in used:
                raise Wrong(f"rank {rank} runs W{j} without I, or again")
            used.add(j)
            sums.append((inputs[j], outputs[j]))
            if rank:
                yield ("give back",)
        else:
            updates += 1
    if updates != 1:
        raise Wrong(f"rank {rank} updates {updates} times")
    return sums
