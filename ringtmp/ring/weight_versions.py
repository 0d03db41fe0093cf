"""The version of the weights that each micro-batch takes, where updates do not wait for it (PipeDream, 2BW)."""

from collections import Counter
from typing import Any

from ringtmp.nn.layer import Array
from ringtmp.nn.stage import Stage
from ringtmp.run.timetable import Phase


class WeightVersions:
    """Which weights a micro-batch takes, where updates do not wait for it (PipeDream, 2BW).

    Version k is the weights after k updates. The live ones are always the newest; before an update, those that a
    micro-batch still needs for its I, or a later one for its F, are copied into a stash.

    Parameters
    ----------
    stage : Stage
    lag : int or None
        0: F of step k takes version k (synchronous). 1: version k - 1 (PipeDream-2BW, Narayanan et al. 2021).
        None: whatever is newest (PipeDream).
    start : int
        Updates made before.
    stashed : bool
        Whether the stage's first stash already holds version `start` - 1.
    """

    def __init__(self, stage: Stage, lag: int | None, start: int, stashed: bool = False) -> None:
        self.stage, self.lag, self.live = stage, lag, start
        self.first = start - stashed  # the oldest version that exists
        self.stashes = {start - 1: 0} if stashed else {}  # number of the stage's stash, by version
        self.met: dict[int, int] = {}  # version, by place, of micro-batches between F and I
        self.users: Counter[int] = Counter()  # how many of them, by version

    def wanted(self, phase: Phase) -> int | None:
        """The version that F of `phase` takes, or None if it does not exist yet."""
        if self.lag == 0:
            return self.live if phase.step == self.live else None
        if self.lag is None and phase.training:
            return self.live
        lag = self.lag if self.lag and phase.training else 0
        version = max(phase.step - lag, self.first)
        return version if version == self.live or version in self.stashes else None

    def of(self, place: int, phase: Phase) -> int:
        """The version that the micro-batch at `place` has taken in its F."""
        return self.met.get(place, phase.step)

    def take(self, place: int, phase: Phase) -> Any:
        """The weights for the F of the micro-batch at `place`, as `Stage.forward` takes them (None: the live ones)."""
        if self.lag == 0:
            return None
        version = self.wanted(phase)
        assert version is not None
        if phase.training:
            self.met[place] = version
            self.users[version] += 1
        return self._weights(version)

    def leave(self, place: int) -> Any:
        """The weights for the I of the micro-batch at `place`, which then no longer needs them."""
        if self.lag == 0:
            return None
        version = self.met.pop(place)
        self.users[version] -= 1
        return self._weights(version)

    def _weights(self, version: int) -> Any:
        return None if version == self.live else self.stage.stashed(self.stashes[version])

    def stashed_before(self) -> list[Array] | None:
        """The flat parameters of each layer before the newest update, if they are kept."""
        stash = self.stashes.get(self.live - 1)
        return None if stash is None else self.stage.stash_flat(stash)

    def before_update(self) -> None:
        """Stash the live version if it is still needed, and drop the stashed ones that are not; an update follows."""
        if self.lag == 0:
            self.live += 1
            return
        needed = {version for version, users in self.users.items() if users}
        if self.lag:
            needed.add(self.live)
        self.stashes = {version: stash for version, stash in self.stashes.items() if version in needed}
        if self.live in needed:
            taken = set(self.stashes.values())
            stash = next(number for number in range(len(taken) + 1) if number not in taken)
            self.stage.stash(stash)
            self.stashes[self.live] = stash
        self.live += 1
