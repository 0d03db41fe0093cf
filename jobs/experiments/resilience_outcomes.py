"""Outcome of each fault, by the role of the struck rank: a table of whole runs.

Role: a rank of the ring and its first rank, a worker, and the server (bsp). Fault: `permanent`, the process and its
node with its memory are gone for good; `stopped short`, for a second; `stopped long`, for more than twice the time-outs
and then continued; `hung`, never continued; `cut link`, the host is unreachable but its processes run; `whole host`,
the host is gone with all that was in its memory. The last two take hosts made of namespaces (`ringtmp.jobs.lib.hosts`),
the supervisor at their switch; if root may not make them a row says why. All time-outs are 3 s, that of a stall 10.

A run has survived if all its steps are made, by its own status; `ended`: the supervisor has ended with status 0, too.
`again`: steps made a second time, as the run reports or as seen from outside, whichever is more. `pause`: the longest
time between two new steps around the fault.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringtmp.jobs.lib.hosts import MPICH_OVER_TCP, MPIRUN_TO_HOSTS, Hosts, why_not
from ringtmp.jobs.lib.struck_job import Struck, Supervised
from ringtmp.jobs.lib.supervised_runs import apart, lose_node, paced, place
from ringtmp.jobs.lib.watch import Watch, fell_back, final_loss, pause
from ringtmp.jobs.lib.ways import WAYS, Way

RING, BSP = WAYS["ring"].named("ring", micro_batches=8), WAYS["bsp"]
RANKS, TIMEOUT, STALL = 4, 3.0, 10.0
ROLES = {"ring rank": (RING, 2), "first rank": (RING, 0), "worker": (BSP, 2), "server": (BSP, 0)}
Strike = Callable[[Path, Struck, int], None]


def flags_of(way: Way, steps: int) -> list[str]:
    """Flags of a run of `way` with `steps` steps, for runs with a fault and without."""
    more = ("--heartbeat-timeout", f"{TIMEOUT:g}") if way.trainer == "ring" else ("--worker-timeout", f"{TIMEOUT:g}")
    return [*paced(12, 0.08, 1 / (RANKS - 1), steps, checkpoint_every=20, stall_timeout=STALL), *way.flags, *more]


# ---- faults on one machine ------------------------------------------------------------------------------------------


def permanent(folder: Path, job: Struck, rank: int) -> None:
    """Remove the node of rank `rank` of `job`, which runs in `folder`, for good."""
    lose_node(folder, rank)
    job.signal(rank, signal.SIGKILL)


def stopped(seconds: float | None) -> Strike:
    """A fault: the process stops for `seconds`, or for good (None)."""

    def strike(folder: Path, job: Struck, rank: int) -> None:
        _, pid = job.signal(rank, signal.SIGSTOP)
        if seconds:
            time.sleep(seconds)
            if job.lives(pid):
                os.kill(pid, signal.SIGCONT)

    return strike


FAULTS: dict[str, Strike] = {
    "permanent": permanent,
    "stopped short": stopped(1.0),
    "stopped long": stopped(2.5 * TIMEOUT),
    "hung": stopped(None),
}


# ---- faults of hosts ------------------------------------------------------------------------------------------------


def supervisor(hosts: Hosts, folder: Path) -> list[str]:
    """Words that start a supervisor of `hosts` at their switch, in `folder`, up to its program.

    A host counts as up while its link is.
    """
    probe = "ip -br link show up type veth | sed -n 's/^\\(host[0-9]*\\)[@ ].*/\\1/p' | sort -V"
    words = [*hosts.at_switch(folder), sys.executable, "-m", "ringtmp", "supervise"]
    words += ["-n", str(len(hosts.names)), "--hosts", ",".join(hosts.names), "--probe", probe]
    return [*words, "--mpirun", f"{' '.join(MPIRUN_TO_HOSTS)} -wdir {folder}", "--"]


class AtSwitch(Struck):
    """A supervised job with one rank on each host.

    Parameters
    ----------
    folder : Path
        Working folder.
    hosts : Hosts
        The hosts.
    flags : list of str
        Flags of the trainer.
    way : Way
        Way whose trainer runs.
    """

    def __init__(self, folder: Path, hosts: Hosts, flags: list[str], way: Way) -> None:
        words = [*supervisor(hosts, folder), sys.executable, "-m", way.module, *flags]
        super().__init__(folder, len(hosts.names), words, MPICH_OVER_TCP)


@dataclass
class Ends:
    """Results of a run without faults, with which the others are compared.

    Attributes
    ----------
    sha256 : str
        SHA-256 of its weights.
    loss : float
        Loss of its last test.
    """

    sha256: str
    loss: float


def _ending(job: Struck) -> Ends:
    path = job.run / "history.csv"
    return Ends(job.sha256(), final_loss(path.read_text()) if path.exists() else float("nan"))


def _resumed(text: str) -> str:
    """What the run says of how it went on, in a few words."""
    found = re.findall(r"recovered: (.*?); went on at step (\d+)", text)
    dropped = re.findall(r"warning: (rank \d+ on \S+ \(process \d+\) .* and is dropped)", text)
    words = [re.sub(r" \(process \d+\)", "", each[0]) for each in found] + [
        re.sub(r" \(process \d+\)", "", each) for each in dropped
    ]
    return "; ".join(words)


def _watched(job: Struck, strike: Callable[[], None], calm: Ends, limit: float) -> dict[str, Any]:
    """Strike a run in its middle, and record the outcome."""
    fault, status, error = 0.0, None, ""
    with job, Watch(job) as watch:
        try:
            watch.until(30, 90)
            time.sleep(0.5)
            fault = time.time()
            strike()
            status = job.wait(limit)
        except subprocess.TimeoutExpired:
            error = f"no end within {limit:g} s"
        except TimeoutError as failure:
            error = str(failure).partition("\n")[0]
        ends = _ending(job)
        if error:
            job.end()
    told = job.redone()
    survived = job.state() == "finished"
    return {
        "survived": survived,
        "ended": status == 0,
        "told": bool(told),
        "again": max(sum(told), fell_back(watch.moments)),
        "pause": pause(watch.moments, fault),
        "loss": ends.loss,
        "off": ends.loss - calm.loss,
        "same": survived and ends.sha256 == calm.sha256,
        "how": _resumed(job.text) or ("" if survived else _last(job)),
        "why": error,
        "ranks": _ranks(job.text),
    }


def _last(job: Struck) -> str:
    lines = [line for line in job.text.splitlines() if line.startswith(("supervise:", "ringtmp", "rank "))]
    return lines[-1] if lines else ""


def _ranks(text: str) -> int:
    """Over how many ranks the run was spread at its end."""
    found = re.findall(r"over (\d+)\s+ranks?\b|over (\d+) rank", text)
    return int(next(filter(None, found[-1]))) if found else 0


def outcomes(quick: bool) -> list[dict[str, Any]]:
    """A row for each role and fault; `quick`: two of them, with short runs."""
    steps, limit = (60, 60.0) if quick else (150, 90.0)
    calm: dict[str, Ends] = {}
    for way in (RING, BSP):
        with (
            place(RANKS) as folder,
            Supervised(folder, RANKS, flags_of(way, steps), apart(RANKS), way.module) as job,
        ):
            job.wait(180)
            calm[way.label] = _ending(job)
    rows = []
    some = {("first rank", "permanent"), ("worker", "permanent")}
    for role, (way, rank) in ROLES.items():
        for name, strike in FAULTS.items():
            if quick and (role, name) not in some:
                continue
            with place(RANKS) as folder:
                job = Supervised(folder, RANKS, flags_of(way, steps), apart(RANKS), way.module)

                def hit(strike: Strike = strike, folder: Path = folder, job: Struck = job, rank: int = rank) -> None:
                    strike(folder, job, rank)

                rows.append(_told({"role": role, "fault": name, **_watched(job, hit, calm[way.label], limit)}))
        for name in ("cut link", "whole host"):
            if quick:
                continue
            rows.append(_told({"role": role, "fault": name, **_on_hosts(way, rank, name, steps, calm, limit)}))
    return rows


def _on_hosts(way: Way, rank: int, fault: str, steps: int, calm: Mapping[str, Ends], limit: float) -> dict[str, Any]:
    """A run on hosts made of namespaces, one of which is cut off or lost."""
    if why := why_not():
        return {"survived": None, "why": why, "how": ""}
    folder = Path(tempfile.mkdtemp(prefix="resilience-"))
    try:
        with Hosts(RANKS) as hosts:
            job = AtSwitch(folder, hosts, flags_of(way, steps), way)

            def hit() -> None:
                (hosts.cut if fault == "cut link" else hosts.lose)(rank)

            return _watched(job, hit, calm[way.label], limit)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _told(row: dict[str, Any]) -> dict[str, Any]:
    verdict = {True: "survived", False: "did not survive", None: "not measured"}[row["survived"]]
    more = (
        f", {row['again']} again, {row['pause']:.2f} s without progress, same weights: {row['same']}; {row['how']}"
        if row["survived"] is not None
        else ""
    )
    print(f"outcome, {row['role']}, {row['fault']}: {verdict}{more} {row['why']}".rstrip(), flush=True)
    return row
