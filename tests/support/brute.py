"""Runs a plan with real message queues and counted buffers: slow, obvious, and independent of `ringtmp.schedule.check`.

What a stage hands on is the history of what was done to it, and messages carry no number, so a wrong order anywhere
shows at the end. A send blocks until its receiver has a buffer for it: receives of activations are posted ahead, for
each stage as many as it ever holds by its rank's list and one more; that of a gradient is posted by F. Labels have
buffers of their own, as many as stage 0 has. What stays on its rank is not sent: it is handed over, without a limit.
"""

from collections import deque


class Wrong(Exception):  # noqa: N818
    """The plan does not do what one training step (or one evaluation) needs."""


class Channel:
    """Messages on their way to one stage, and how many more its receiver has posted receives for."""

    def __init__(self, free: float) -> None:
        self.free, self.messages = free, deque()


def run(plan) -> None:
    """Raise `Wrong` unless every rank comes to its end with the right sums, one update each, and nothing left over."""
    training = any(action.kind != "F" for actions in plan.ranks for action in actions)
    channels = _channels(plan)
    programs = [_program(plan, rank, training) for rank in range(len(plan.ranks))]
    requests: list = [None] * len(programs)
    sums: list = [None] * len(programs)

    def serve(what, key, message=None):
        """Do what a rank asks for and return (True, answer), or (False, None) if it has to wait."""
        channel = channels[key]
        if what == "receive":
            return (True, channel.messages.popleft()) if channel.messages else (False, None)
        if what == "post":
            channel.free += 1
        elif channel.free == 0:
            return False, None
        else:
            channel.free -= 1
            channel.messages.append(message)
        return True, None

    def advance(rank: int, answer) -> None:
        try:
            requests[rank] = programs[rank].send(answer)
        except StopIteration as end:
            sums[rank] = end.value

    for rank in range(len(programs)):
        advance(rank, None)
    moved = True
    while moved:
        moved = False
        for rank in range(len(programs)):
            while sums[rank] is None:
                served, answer = serve(*requests[rank])
                if not served:
                    break
                advance(rank, answer)
                moved = True
    if None in sums:
        raise Wrong(f"stuck: {[request for request, done in zip(requests, sums, strict=True) if done is None]}")
    if any(channel.messages for channel in channels.values()):
        raise Wrong("a message was never received")
    for stage in range(plan.stages):
        got = sums[stage % len(programs)].get(stage, [])
        if got != _expected(plan, stage, training):
            raise Wrong(f"stage {stage} sums {got}")


def _channels(plan) -> dict[tuple, Channel]:
    """A channel for what each stage receives: activations, gradients, and the last one labels."""
    alone, last = len(plan.ranks) == 1, plan.stages - 1
    room = [float("inf") if alone else _most_held(plan, stage) + 1 for stage in range(plan.stages)]
    channels = {("activation", stage): Channel(room[stage]) for stage in range(1, plan.stages)}
    channels |= {("gradient", stage): Channel(float("inf") if alone else 0) for stage in range(last)}
    return channels | {("label", last): Channel(room[0])}


def _most_held(plan, stage) -> int:
    held = most = 0
    for actions in plan.ranks:
        for action in actions:
            held += (action.stage, action.kind) == (stage, "F")
            most = max(most, held)
            held -= action.stage == stage and action.kind in ("W", "B")
    return most


def _expected(plan, stage: int, training: bool) -> list[tuple]:
    """What a stage's gradient must be made of: (activation, gradient) of each micro-batch, ascending.

    In an evaluation: the activations, and on the last stage their labels.
    """
    last, rows = plan.stages - 1, []
    for j in range(plan.micro_batches):
        activation, gradient = ("x", j, *range(stage)), ("loss", ("y", j), ("x", j, *range(plan.stages)))
        for later in range(last, stage, -1):
            gradient = ("back", later, gradient)
        rows.append((activation, gradient if training else ("y", j) if stage == last else None))
    return rows


def _program(plan, rank: int, training: bool):
    """A rank as a generator: yields what it asks for, returns for each of its stages what its update was made of."""
    last = plan.stages - 1
    inputs, labels, gradients, used, updated = {}, {}, {}, set(), set()  # by (stage, micro-batch)
    sums: dict[int, list] = {}
    for stage, kind, j in plan.ranks[rank]:
        if stage % len(plan.ranks) != rank or not 0 <= stage <= last:
            raise Wrong(f"rank {rank} has an action of stage {stage}")
        if stage in updated:
            raise Wrong(f"stage {stage} goes on after its update")
        this = stage, j
        if kind == "F":
            if this in inputs:
                raise Wrong(f"stage {stage} runs F{j} again")
            inputs[this] = (yield "receive", ("activation", stage)) if stage else ("x", j)
            if stage == 0:
                yield "send", ("label", last), ("y", j)
            if stage == last:
                labels[this] = yield "receive", ("label", last)
                yield "post", ("label", last)  # it is copied out at once
            else:
                yield "post", ("gradient", stage)
                yield "send", ("activation", stage + 1), (*inputs[this], stage)
            if not training:
                sums.setdefault(stage, []).append((inputs[this], labels.get(this)))
                if stage:
                    yield "post", ("activation", stage)
        if kind in ("I", "B"):
            if this not in inputs or this in gradients:
                raise Wrong(f"stage {stage} runs I{j} without F, or again")
            loss = ("loss", labels.get(this), (*inputs[this], stage))
            gradients[this] = loss if stage == last else (yield "receive", ("gradient", stage))
        if kind in ("W", "B"):
            if this not in gradients or this in used:
                raise Wrong(f"stage {stage} runs W{j} without I, or again")
            used.add(this)
            sums.setdefault(stage, []).append((inputs[this], gradients[this]))
            if stage:
                yield "post", ("activation", stage)
        if kind in ("I", "B") and stage:  # that of B leaves after its W
            yield "send", ("gradient", stage - 1), ("back", stage, gradients[this])
        if kind == "U":
            updated.add(stage)
    if training and updated != set(range(rank, plan.stages, len(plan.ranks))):
        raise Wrong(f"rank {rank} updates {updated}")
    if training and used != set(inputs):
        raise Wrong(f"rank {rank} runs F for nothing")
    return sums
