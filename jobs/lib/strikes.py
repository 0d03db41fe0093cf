"""Many faults, one after the other in one run: choice of ranks and phases, their order, and checks afterwards.

strike_all(job, cases(4, apart=True, seed=0, most=20), every=8)
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ringtmp.jobs.lib.struck_job import Struck, Supervised

PHASES = ("F", "I", "W", "U", "E", "replicate", "checkpoint", "restore")
Case = tuple[int, str]  # rank and phase


@dataclass(frozen=True)
class Strike:
    """A SIGKILL.

    Attributes
    ----------
    rank, phase, step : int, str, int
        Killed rank, and the phase and step in which it was.
    seconds : float
        Time until the first step after it was done on every rank.
    """

    rank: int
    phase: str
    step: int
    seconds: float


def nodes(ranks: int) -> list[str]:
    """Options of the supervisor that put each of `ranks` ranks on an emulated node with separate memory."""
    return ["--hosts", ",".join(chr(ord("a") + rank) for rank in range(ranks)), "--emulate"]


def cases(ranks: int, apart: bool, seed: int, most: int | None = None) -> list[Case]:
    """Every rank and phase, shuffled.

    Parameters
    ----------
    ranks : int
        Ranks of the job.
    apart : bool
        Whether each rank is on a node with separate memory: only then is there a phase `replicate`.
    seed : int
        Seed of the order.
    most : int, optional
        Number of cases; by default all.
    """
    every = [(rank, phase) for rank in range(ranks) for phase in PHASES if phase != "replicate" or apart]
    random.Random(seed).shuffle(every)
    return every[:most]


def strike_all(
    job: Struck, which: Sequence[Case], every: int, limit: float = 60, tell: Callable[[Strike], object] = bool
) -> list[Strike]:
    """Kill one rank after the other.

    `restore` is a phase of a recovery, so another kill precedes it, and `tell` receives that one with a time of 0.

    Parameters
    ----------
    job : Struck
        The running job.
    which : sequence of (int, str)
        Rank and phase of each kill, in their order.
    every : int
        Least number of steps from one kill to the next.
    limit : float
        Seconds that a rank may take to reach the phase, and the job to recover.
    tell : callable
        Called with each strike.

    Raises
    ------
    TimeoutError
        A limit was exceeded, or the job has ended.
    """
    struck, step = [], 3
    for rank, phase in which:
        before = job.recovered()
        if phase == "restore":
            job.catch(rank, "F", step, timeout=limit)
            struck.append(Strike(rank, "F", job.step(rank), 0.0))
            job.kill(rank)
            tell(struck[-1])
        job.catch(rank, phase, step if phase != "restore" else 0, timeout=limit)
        at, moment = job.step(rank), time.time()
        job.kill(rank)
        while job.recovered() == before:
            if time.time() > moment + limit or job.process.poll() is not None:
                raise TimeoutError(f"no recovery from a kill of rank {rank} in {phase} of step {at}:\n{job.text}")
            time.sleep(0.005)
        struck.append(Strike(rank, phase, at, time.time() - moment))
        tell(struck[-1])
        step += every
    return struck


def kills(
    folder: Path,
    flags: Sequence[str],
    steps: int,
    undisturbed: str,
    ranks: int,
    apart: bool,
    which: Sequence[Case],
    tell: Callable[[Strike], object] = bool,
) -> list[Strike]:
    """Kill ranks in one run of `steps` steps, and check the outcome. Raises `AssertionError`.

    Parameters
    ----------
    folder : Path
        Working folder; RINGTMP_NODE_MEMORY must be `folder / "memory"`.
    flags : sequence of str
        Flags of the trainer.
    steps : int
        Steps of the run.
    undisturbed : str
        SHA-256 of the weights at the end of a run without a fault.
    ranks : int
        Ranks of the ring.
    apart : bool
        Whether each rank is on a node with separate memory.
    which : sequence of (int, str)
        Rank and phase of each kill, in their order.
    tell : callable
        Called with each strike.
    """
    with Supervised(folder, ranks, flags, nodes(ranks) if apart else []) as job:
        struck = strike_all(job, which, max(1, (steps - 20) // len(which)), tell=tell)
        assert job.wait() == 0, job.text
    assert job.sha256() == undisturbed, f"other weights than those of the undisturbed run:\n{job.text}"
    again = job.redone()
    assert len(again) == len(which) and max(again) <= 1, f"made again: {again}\n{job.text}"
    assert not (folder / "memory").exists(), "the run has ended, and is not forgotten"
    assert {told["lost"] for told in job.recoveries()} <= {*range(ranks)}, job.text
    return struck


def poisson(mean: float, length: float, ranks: int, seed: int) -> list[tuple[float, int]]:
    """Moments (in seconds) and ranks of failures that come at random.

    The same seed gives the same ranks and, times the mean, the same moments: with a shorter mean the same failures come
    faster.

    Parameters
    ----------
    mean : float
        Mean seconds between two failures.
    length : float
        Seconds that are covered, from 0 on.
    ranks : int
        Ranks that may fail.
    seed : int
        Seed of the random numbers.
    """
    draw, at = random.Random(seed), 0.0
    found: list[tuple[float, int]] = []
    while True:
        at += draw.expovariate(1.0)
        rank = draw.randrange(ranks)
        if at * mean >= length:
            return found
        found.append((at * mean, rank))
