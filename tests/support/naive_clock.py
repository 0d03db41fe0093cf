"""The ring under a clock, slow and obvious: actions and messages are records, and time goes from one to the next.

Independent of `ringtmp.simulate.pipeline_clock` and of `ringtmp.schedule.local_rule` but for the factor of an action
(`stretch`). The rule's limits stay
as they are given.
"""

from dataclasses import dataclass, field

from ringtmp.emulate.jitter import stretch

KINDS = "FIWU"


@dataclass
class Outcome:
    seconds: float | None  # None: stuck
    busy: list[float]
    held: list[int]
    ends: list[float]
    actions: list["Action"]


@dataclass
class Action:
    """One action of a rank, or one piece of a W."""

    rank: int
    stage: int
    kind: str
    numbers: list[int]  # micro-batches, counted on from step to step; of U: the step
    start: float
    lasts: float
    until: float  # when the rank is free again
    last_piece: bool = True


@dataclass
class Ring:
    """A scene, and everything that has happened in it."""

    scene: object
    plan: object
    steps: int
    limits: tuple
    lag: int
    w_group: int
    now: float = 0.0
    actions: list[Action] = field(default_factory=list)
    ended: dict = field(default_factory=dict)  # (stage, kind) -> numbers
    arrives: dict = field(default_factory=dict)  # (stage, kind) -> time of each message, by number
    link: dict = field(default_factory=dict)  # (from rank, direction) -> until when it is taken
    doing: dict = field(default_factory=dict)  # rank -> action
    group: dict = field(default_factory=dict)  # rank -> stage, numbers and shares that are left of a W
    place: dict = field(default_factory=dict)  # rank -> actions of its plan that were begun

    def __post_init__(self):
        self.ranks, self.m = self.scene.ranks, self.scene.micro_batches
        self.stages = self.ranks * self.scene.chunks
        self.total = self.steps * self.m
        for s in range(self.stages):
            for kind in "FIWU":
                self.ended[s, kind] = []
                self.arrives[s, kind] = []
        self.arrives[0, "F"] = [0.0] * self.total
        self.begun_f = dict.fromkeys(range(self.stages), 0)
        self.place = dict.fromkeys(range(self.ranks), 0)

    # ---- what can run ------------------------------------------------------------------------------------------------

    def past(self, time):
        """Whether `time` is not after now; nearer than this is one moment."""
        return time <= self.now * (1 + 1e-12) + 1e-15

    def here(self, s, kind, number):
        """Whether message `number` for F or I of a stage has come."""
        come = self.arrives[s, kind]
        return number < len(come) and self.past(come[number])

    def can(self, s, kind, number):
        """Whether a stage has what this action needs; of U `number` is the step."""
        updates = len(self.ended[s, "U"])
        if kind == "F":
            return self.here(s, "F", number) and number // self.m - 1 - self.lag < updates
        if kind in "IB":
            return self.here(s, "I", number)
        if kind == "W":
            return number in self.ended[s, "I"] and number // self.m == updates
        return len(self.ended[s, "W"]) == (number + 1) * self.m

    def following(self, s, kind):
        """Number of the next action of a kind."""
        return self.begun_f[s] if kind == "F" else len(self.ended[s, kind])

    # ---- what is chosen ----------------------------------------------------------------------------------------------

    def by_plan(self, rank):
        order = self.plan.ranks[rank]
        step, at = divmod(self.place[rank], len(order))
        if step == self.steps:
            return None
        s, kind, j = order[at]
        number = step if kind == "U" else step * self.m + j
        if not self.can(s, kind, number):
            return None
        self.place[rank] += 1
        return s, kind, [number]

    def by_rule(self, rank):
        """U, then I of the last chunk, then F within limits of the earliest pack, then W (a begun one first)."""
        mine = range(rank, self.stages, self.ranks)
        able = {kind: [s for s in mine if self.can(s, kind, self.following(s, kind))] for kind in KINDS}
        if able["U"]:
            return min(able["U"]), "U", [self.following(min(able["U"]), "U")]
        if able["I"]:
            return max(able["I"]), "I", [self.following(max(able["I"]), "I")]
        cap, limit = self.limits

        def within(s):
            held = self.begun_f[s] - len(self.ended[s, "W"])
            ahead = self.begun_f[s] - len(self.ended[s, "I"])
            return held < cap[rank][s // self.ranks] and ahead < limit[rank][s // self.ranks]

        free = [s for s in able["F"] if within(s)]
        if free:
            s = min(free, key=lambda s: (self.begun_f[s] // self.ranks, s))
            return s, "F", [self.begun_f[s]]
        if rank in self.group:
            return self.group[rank][0], "W", self.group[rank][1]
        if able["W"]:
            s = max(able["W"])
            first = self.following(s, "W")
            ready = [n for n in self.ended[s, "I"] if n >= first and n // self.m == first // self.m]
            return s, "W", sorted(ready)[: self.w_group]
        return None

    def begin(self, rank):
        chosen = self.by_plan(rank) if self.plan else self.by_rule(rank)
        if chosen is None:
            return
        scene, (s, kind, numbers) = self.scene, chosen

        def whole(kind, number):
            size = 1.0 if kind == "U" else scene.sizes[number % self.m]
            factor = stretch(scene.jitter, scene.seed, s, "FIWU".index(kind), number)
            return size * scene.seconds[s, "FIWU".index(kind)] * factor

        lasts = sum(whole(half, n) for half in ("IW" if kind == "B" else kind) for n in numbers)
        last_piece = True
        if kind == "W" and not self.plan:
            if rank not in self.group:
                self.group[rank] = s, numbers, list(scene.pieces[s])
            left = self.group[rank][2]
            lasts *= left.pop(0)
            last_piece = not left
            if last_piece:
                del self.group[rank]
        if kind == "F":
            self.begun_f[s] += 1
        until = self.now + lasts + scene.overhead
        self.doing[rank] = Action(rank, s, kind, numbers, self.now, lasts, until, last_piece)
        self.actions.append(self.doing[rank])

    # ---- what follows from an action ---------------------------------------------------------------------------------

    def end(self, rank):
        action = self.doing.pop(rank)
        s, kind = action.stage, action.kind
        if kind == "W" and not action.last_piece:
            return
        for half in "IW" if kind == "B" else kind:
            self.ended[s, half] += action.numbers
        if kind == "F" and s < self.stages - 1:
            self.send(s, s + 1, "F", +1, 0)
        elif kind == "F":  # the last stage makes its own gradient
            self.arrives[s, "I"].append(self.now)
        elif kind in "IB" and s > 0:
            self.send(s, s - 1, "I", -1, 1)

    def send(self, s, target, kind, direction, column):
        """A message takes its link, waits for that if need be, and is then under way."""
        here, there = s % self.ranks, target % self.ranks
        if here == there:
            self.arrives[target, kind].append(self.now)
            return
        taken = float(self.scene.transfer[s, column]) if len(self.scene.transfer) else 0.0
        gone = max(self.now, self.link.get((here, direction), 0.0)) + taken
        self.link[here, direction] = gone
        self.arrives[target, kind].append(gone + self.scene.latency)

    # ---- time --------------------------------------------------------------------------------------------------------

    def run(self):
        while True:
            for rank in range(self.ranks):
                if rank in self.doing and self.past(self.doing[rank].until):
                    self.end(rank)
            for rank in range(self.ranks):
                if rank not in self.doing:
                    self.begin(rank)
            ahead = [action.until for action in self.doing.values()]
            ahead += [time for come in self.arrives.values() for time in come if not self.past(time)]
            if not ahead:
                return self.outcome()
            self.now = min(ahead)

    def outcome(self):
        finished = all(len(self.ended[s, "U"]) == self.steps for s in range(self.stages))
        busy = [sum(a.lasts for a in self.actions if a.rank == rank) for rank in range(self.ranks)]
        ends = [
            max((a.until for a in self.actions if a.kind == "U" and a.numbers == [step]), default=0.0)
            for step in range(self.steps)
        ]
        seconds = max(a.until for a in self.actions) if finished else None
        return Outcome(seconds, busy, [self.most_held(rank) for rank in range(self.ranks)], ends, self.actions)

    def most_held(self, rank):
        """Micro-batches with F begun and W not ended, over the chunks, at the worst moment."""
        mine = [a for a in self.actions if a.rank == rank]
        most = 0
        for at in (a.start for a in mine if a.kind == "F"):
            begun = sum(a.kind == "F" and a.start <= at for a in mine)
            most = max(most, begun - sum(len(a.numbers) for a in mine if gone(a, at)))
        return most


def gone(action, at):
    """Whether an action has let micro-batches go by `at`."""
    return action.kind in "WB" and action.last_piece and action.until <= at


def run(scene, plan=None, *, steps, limits=None, lag=0, w_group=1) -> Outcome:
    """As `ringtmp.simulate.pipeline.simulate` with limits that stay."""
    return Ring(scene, plan, steps, limits, lag, w_group).run()
