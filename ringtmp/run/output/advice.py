"""What to try next: one line, from what a run has measured."""

from math import isnan
from typing import NamedTuple


class Measured(NamedTuple):
    """What the advice follows from. Shares are means over the ranks that train, in 0..1 of their wall time.

    Attributes
    ----------
    ranks : int
        Ranks of the launch.
    room : int
        Ranks that could each have cores of their own.
    cores_each : float
        Cores of a host over its ranks: the least of all hosts.
    threads : int
        Threads of a rank.
    rings : int
        Rings side by side.
    emulated : bool
        Whether nodes were emulated.
    ring : bool
        Whether the trainer is the ring; otherwise servers or all-reduce.
    transfer, neighbour, core, checkpoint : float
        Shares: messages, waits for other ranks, waits for a core (NaN: unknown, part of the others), checkpoints.
    unequal : float
        Computing time of the rank that computed longest, over the mean.
    layers : int
        Layers of the model.
    batch_size, micro_batches : int
        Samples of a step, and its micro-batches.
    balanced : bool
        Whether layers move between ranks during training (`balance auto`).
    shared : bool
        Whether every rank serves (`colocate`), or nobody does (all-reduce).
    lr : float
        Learning rate.
    steps : int
        Steps of the launch.
    checkpoint_every : int
        Steps between checkpoints; 0: not set.
    first_loss, last_loss : float
        Of the run; NaN: unknown.
    score, guess : float
        Test score, and that of guessing; NaN: unknown.
    folder : str
        The run folder, if it holds a trace; otherwise empty.
    """

    ranks: int
    room: int
    cores_each: float
    threads: int
    rings: int
    emulated: bool
    ring: bool
    transfer: float
    neighbour: float
    core: float
    checkpoint: float
    unequal: float
    layers: int
    batch_size: int
    micro_batches: int
    balanced: bool
    shared: bool
    lr: float
    steps: int
    checkpoint_every: int
    first_loss: float
    last_loss: float
    score: float
    guess: float
    folder: str


# Shares from which on a part is worth mending.
_CORE, _CHECKPOINT, _TRANSFER, _NEIGHBOUR = 0.05, 0.1, 0.25, 0.2
_UNEQUAL = 1.25  # longest computing time over the mean from which on layers are worth moving
_OTHER = {True: "ringtmp serve", False: "ringtmp train"}  # by whether this is a ring
_COMPARE = "the same settings there show which is faster here"
_ENOUGH = 4  # micro-batches per rank that leave a ring little forced idle time


def advice(run: Measured) -> str:
    """One line that begins with what to do, and says why.

    Parameters
    ----------
    run : Measured
        The measurements.
    """
    # A run that does not learn is no use however fast it is.
    if run.last_loss >= run.first_loss:
        return f"--lr {run.lr / 10:g}: the loss did not fall with {run.lr:g}"
    if run.score <= run.guess:
        return "--epochs: the test score is not above that of guessing; train for longer, or with another --lr"

    # Cores that are shared hide everything else.
    if run.cores_each < run.threads and not run.emulated and not run.core < _CORE:
        return _crowded(run)
    return _costs(run) or _waits(run) or _more(run)


def _crowded(run: Measured) -> str:
    """Advice where ranks share cores."""
    why = "ranks share cores" if isnan(run.core) else f"ranks waited for a core for {run.core:.0%} of their time"
    if run.cores_each >= 1:
        return f"--threads {int(run.cores_each)}: a core for each thread; {why}"
    rings = "--rings 1 " if run.rings > 1 else ""
    each = "each core" if run.threads == 1 else f"each {run.threads} cores"
    return f"{rings}-n {run.room}: a rank for {each}; {why}"


def _costs(run: Measured) -> str:
    """Advice on time that checkpoints and messages take; empty: they take little."""
    if run.checkpoint >= _CHECKPOINT and 0 < run.checkpoint_every < run.steps:
        return (
            f"--checkpoint-every {4 * run.checkpoint_every}: checkpoints took {run.checkpoint:.0%} of the ranks' time"
        )
    if run.transfer >= _TRANSFER:
        why = f"messages took {run.transfer:.0%} of the ranks' time"
        if run.ring and run.micro_batches > run.ranks > 1:
            return f"--micro-batches {max(run.ranks, run.micro_batches // 2)}: {why}; fewer micro-batches are larger"
        if run.ring and run.ranks > 1:
            return f"-n {max(1, run.ranks // 2)}: {why}; fewer ranks send less"
        if not run.ring:
            return f"--batch-size {2 * run.batch_size}: {why}; larger batches exchange gradients less often"
    return ""


def _waits(run: Measured) -> str:
    """Advice on waits for other ranks; empty: they are short."""
    if run.neighbour < _NEIGHBOUR:
        return ""
    why = f"ranks waited for others for {run.neighbour:.0%} of their time"
    if not run.ring:
        return (
            f"{_OTHER[run.ring]}: {why}; {_COMPARE}"
            if run.shared
            else f"--colocate on: {why}; a server on every rank shares the work"
        )
    if run.unequal >= _UNEQUAL and not run.balanced and run.layers > run.ranks:
        return f"--balance auto: {why}, and one rank computed {run.unequal:.1f} times as long as the mean"
    micro_batches = min(2 * run.micro_batches, run.batch_size)
    if run.micro_batches < min(_ENOUGH * run.ranks, micro_batches):
        return f"--micro-batches {micro_batches}: {why}; more micro-batches fill a step's begin and end"
    if run.folder:
        return f"ringtmp plan --trace {run.folder}: {why}; the plan says why, and what would be faster"
    return f"--trace on: {why}; ringtmp plan --trace RUN then says why"


def _more(run: Measured) -> str:
    """Advice where there is nothing to mend."""
    if run.ranks == 1 and run.ring and run.layers > 1 and run.cores_each >= 2 * run.threads and not run.emulated:
        room = min(int(run.cores_each // run.threads), run.layers)
        return f"-n {room}: this host has a core for each of {room} ranks"
    return f"{_OTHER[run.ring]}: nothing to mend here; {_COMPARE}"
