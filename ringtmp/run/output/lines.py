"""The line of an epoch: loss, scores, rate and time left, in as much room as there is."""

from dataclasses import dataclass
from math import isfinite, isnan


@dataclass
class Span:
    """Sums over the steps from one moment on.

    Attributes
    ----------
    began : float
        Seconds of the launch at which the first of these steps began.
    steps : int
        Number of steps.
    loss, correct : float
        Sums over the samples: loss, and correct predictions (NaN for values).
    waited, elapsed : float
        Nanoseconds that all ranks waited, and that passed on them.
    """

    began: float = 0.0
    steps: int = 0
    loss: float = 0.0
    correct: float = 0.0
    waited: float = 0.0
    elapsed: float = 0.0

    def add(self, loss: float, correct: float, waited: float, elapsed: float) -> None:
        """Add one step; the parameters are those of its own, as in the attributes."""
        self.steps += 1
        self.loss += loss
        self.correct += correct
        self.waited += waited
        self.elapsed += elapsed

    @property
    def idle(self) -> float:
        """Share of all ranks' time that was waited, in 0..1; NaN if no time has passed."""
        return self.waited / self.elapsed if self.elapsed > 0 else float("nan")

    def rate(self, now: float) -> float:
        """Steps per second up to second `now` of the launch; NaN if no time has passed."""
        return self.steps / (now - self.began) if now > self.began else float("nan")


@dataclass(frozen=True)
class Line:
    """What a line says.

    Attributes
    ----------
    step, total : int
        Steps of the run that are made, and all.
    per_epoch : int
        Steps of an epoch.
    loss, train : float
        Means over the line's steps; NaN: unknown.
    test : float
        Test score; NaN: unknown.
    accuracy : bool
        Whether scores are accuracies; otherwise R2.
    rate : float
        Samples per second over the line's steps; NaN: unknown.
    left : float
        Seconds until the last step at this rate; NaN: unknown.
    """

    step: int
    total: int
    per_epoch: int
    loss: float
    train: float
    test: float
    accuracy: bool
    rate: float
    left: float

    def text(self, room: int | None, head: bool = True) -> str:
        """The line as text.

        Parameters
        ----------
        room : int or None
            Characters that it may take: what matters least is left out if need be; None: no limit.
        head : bool
            Whether it begins with epoch and step; the live bar shows the step itself.
        """
        epochs, epoch = (
            f"{step // self.per_epoch}" if step % self.per_epoch == 0 else f"{step / self.per_epoch:.1f}"
            for step in (self.total, self.step)
        )
        score = (lambda value: f"{value:6.1%}") if self.accuracy else (lambda value: f"{value:6.3f}")
        # Each part with its rank: the highest is left out first.
        parts = [(1, f"epoch {epoch:>{len(epochs)}}/{epochs}")]
        if head:
            parts += [(6, f"step {self.step:>{len(str(self.total))}}/{self.total}")]
        parts += [
            (0, f"loss {show_loss(self.loss):>8}" if isfinite(self.loss) else ""),
            (4, f"train {score(self.train)}" if not isnan(self.train) else ""),
            (2, f"test {'' if self.accuracy else 'R2 '}{score(self.test)}" if not isnan(self.test) else ""),
            (5, f"{show_rate(self.rate):>7} samples/s" if not isnan(self.rate) else ""),
            (3, f"{show_time(self.left)} left" if not isnan(self.left) else ""),
        ]
        parts = [part for part in parts if part[1]]
        # Close the columns up, then leave parts out.
        if room is not None and len("  ".join(text for _, text in parts)) > room:
            parts = [(rank, " ".join(text.split())) for rank, text in parts]
        while room is not None and len(parts) > 1 and len("  ".join(text for _, text in parts)) > room:
            parts.remove(max(parts))
        return "  ".join(text for _, text in parts)


def show_loss(loss: float) -> str:
    """A loss with four digits, also a very small or large one."""
    return f"{loss:.4f}" if loss == 0 or 1e-3 <= abs(loss) < 1e4 else f"{loss:.2e}"


def show_rate(rate: float) -> str:
    """Samples per second without decimals, or with two digits below 10."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def show_time(seconds: float) -> str:
    """Seconds as minutes and seconds, or with hours: 0:14, 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
