"""Starts a job, sees how it ends, and starts it again on what is left: what `ringtmp supervise` does."""

import argparse
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

from ringtmp.comm import ulfm
from ringtmp.errors import UserError
from ringtmp.resilience.incident import SUPERVISED
from ringtmp.resilience.job_process import End, JobProcess
from ringtmp.resilience.standby import STANDBY, give_order, give_sign_of_life
from ringtmp.storage.run_folder import RunFolder

AGAIN = 75  # exit status (EX_TEMPFAIL): the run is to go on later, as after SIGUSR1 to the supervisor
_PROBE = 60.0  # seconds that a probe may take
_FRUITLESS = 8  # starts in a row without a step, after which the job is given up
_MOST_WAIT = 60.0  # seconds between two starts, whatever went before


def _say(text: str) -> None:
    with suppress(OSError):
        print(f"supervise: {text}", file=sys.stderr, flush=True)


class Supervisor:
    """Starts a job again and again until it has ended of itself.

    Parameters
    ----------
    options : Namespace
        Of the command line of `ringtmp supervise`.
    program, flags : sequence of str
        What is started, up to the module; and the module's flags.
    folder : RunFolder
        Of the run, which may not have begun.
    """

    def __init__(
        self, options: argparse.Namespace, program: Sequence[str], flags: Sequence[str], folder: RunFolder
    ) -> None:
        self.options, self.program, self.flags, self.folder = options, program, flags, folder
        self.hosts = hosts_in(options.hosts) if options.hosts else []
        self.signal = 0  # that this process got
        self.joining = False  # the job has been asked to stop so that a host can join
        self.gone: set[str] = set()  # hosts that have left
        self.restarts = self.fruitless = self.left = 0
        self.heals = "--with-ft" in options.mpirun or ulfm.asked()
        self.names: list[str] = []  # hosts of the ranks of the launch that runs
        self.waiting = self.folder.path / ".standby"
        self.spare: JobProcess | None = None  # a job that stands by
        self.ended: JobProcess | None = None  # the last one
        self.recruited, self.order = 0, self.waiting
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def run(self) -> int:
        """Until the end; the exit status."""
        cause: dict[str, Any] = {}
        try:
            while True:
                names = self._usable()
                if self.signal:
                    return self._stopped()
                before, job = self._step(), self._start(names, cause)
                self._sweep()
                end = self._watch(job)
                job.clear()
                self.ended, ended = job, time.time()
                status = self.folder.status() if self._begun() else {}
                status = status if status.get("time", 0) >= job.started else {}
                verdict = self._verdict(end, status)
                if verdict is not None:
                    return verdict
                cause = self._cause(end, status, ended)
                self._back_off(self._step() > before or self.joining)
                self.joining = False
        finally:
            self._dismiss()
            self._sweep()
            shutil.rmtree(self.waiting, ignore_errors=True)

    def _start(self, names: list[str], cause: dict[str, Any]) -> JobProcess:
        """Start the job: by those who stand by, if they are as many and where they should be."""
        env = self._environment(names, cause)
        if self.spare and self.spare.process.poll() is None and self.names == names:
            job, self.spare = self.spare, None
            job.started = time.time()
            give_order(self.order, env)
        else:
            self._dismiss()
            job = JobProcess(self._command(names), env, self.heals)
        self.names = names
        return job

    def _watch(self, job: JobProcess) -> End:
        """Until the job ends: pass signals on, see whether lost hosts are back, have others stand by."""
        told, look, begun = 0, time.time() + self.options.probe_every, self._step()
        while True:
            end = job.wait(self.folder if self._begun() else None, time.time() + 0.25)
            if end:
                return end
            if self.signal != told:
                told = self.signal
                job.tell(signal.SIGTERM if told == signal.SIGUSR1 else told)
            if not (told or self.joining) and time.time() > look and len(self.names) < self.options.ranks:
                look = time.time() + self.options.probe_every
                if len(self._probe()) > len(self.names):
                    self.joining = True
                    job.tell(signal.SIGTERM)
            if self._begun():
                give_sign_of_life(self.waiting)
                if self.options.standby == "on" and not self.spare and self._step() > begun:
                    self._recruit()

    def _recruit(self) -> None:
        """Start processes that load everything and wait."""
        self.recruited += 1
        self.order = self.waiting / f"launch-{self.recruited}"
        self.spare = JobProcess(self._command(self.names), {STANDBY: str(self.order.resolve())}, self.heals)

    def _dismiss(self) -> None:
        if self.spare:
            self.spare.clear()
            self.spare = None

    def _sweep(self) -> None:
        """Tidy up after the last job, once the next one is on its way."""
        if self.ended:
            self.ended.sweep()
            self.ended = None

    # ---- what to start, and where -------------------------------------------------------------------------------

    def _begun(self) -> bool:
        return (self.folder.path / "config.toml").exists()

    def _step(self) -> int:
        """The newest step that the run is known to have made."""
        try:
            last = self.folder.history.read_text().rstrip("\n").rsplit("\n", 1)[-1]
            return int(last.split(",")[1])
        except (OSError, ValueError, IndexError):
            return 0

    def _probe(self) -> list[str]:
        """A host for each rank that there is room for now; empty names where there is one machine only."""
        if self.options.probe:
            found = hosts_in(",".join(_output(self.options.probe).split()))
        elif self.hosts and not self.options.emulate:
            reached = {host for host in dict.fromkeys(self.hosts) if _reach(host)}
            found = [host for host in self.hosts if host in reached]
        else:
            found = self.hosts or [""] * (self.options.ranks - self.left)
        return [host for host in found if host not in self.gone or not host][: self.options.ranks]

    def _usable(self) -> list[str]:
        """As `_probe`, once there are enough."""
        told = False
        while True:
            names = self._probe()
            if len(names) >= max(1, self.options.min_ranks) or self.signal:
                return names
            if not told:
                _say(f"{len(names)} ranks have room, {self.options.min_ranks} are needed (--min-ranks): waiting")
                told = True
            time.sleep(min(self.options.probe_every, 1.0))

    def _command(self, names: list[str]) -> list[str]:
        launcher = [*shlex.split(self.options.mpirun), "-n", str(len(names))]
        if any(names) and not self.options.emulate:
            launcher += ["-hosts" if "Open MPI" not in _version(self.options.mpirun) else "-host", ",".join(names)]
        if not self._begun():
            return [*launcher, *self.program, *self.flags]
        return [*launcher, *self.program, *_without(self.flags, "name", "resume"), "--resume", str(self.folder.path)]

    def _environment(self, names: list[str], cause: dict[str, Any]) -> dict[str, str]:
        env = {SUPERVISED: json.dumps(cause | {"started": time.time()} if cause else {})}
        if self.options.emulate and any(names):
            env["RINGTMP_NODES"] = ",".join(names)
        return env

    # ---- what to make of an end ---------------------------------------------------------------------------------

    def _verdict(self, end: End, status: dict[str, Any]) -> int | None:
        """The exit status, or None if the job is to be started again. `status`: what the job itself says of its end."""
        state = status.get("state")
        if state == "finished":
            return 0 if status.get("saved", True) else 1
        if state == "stopped":
            return None if self._leaves(status) else self._stopped(status.get("signal", 0))
        if self.signal:
            return self._stopped()
        if end.status == 2 and not state:
            return 2  # bad input has been told by the job
        self.restarts += 1
        if self.restarts > self.options.max_restarts:
            _say(f"given up after {self.options.max_restarts} restarts (--max-restarts); {self._go_on()}")
            return 1
        if self.fruitless >= _FRUITLESS:
            _say(f"given up: {self.fruitless} starts in a row made no step; {self._go_on()}")
            return 1
        return None

    def _leaves(self, status: dict[str, Any]) -> bool:
        """Whether the job has stopped only to go on elsewhere."""
        return not self.signal and (self.joining or bool(status.get("leavers")))

    def _stopped(self, number: int = 0) -> int:
        number = self.signal or number
        if number == signal.SIGUSR1:
            _say(f"stopped; {self._go_on()}")
            return AGAIN
        return 128 + number

    def _go_on(self) -> str:
        return f"go on with the same command, or --resume {self.folder.path}" if self._begun() else "nothing was begun"

    def _cause(self, end: End, status: dict[str, Any], ended: float) -> dict[str, Any]:
        """What the next launch is to tell of this one's end."""
        leavers = status.get("leavers", [])
        if status.get("state") == "stopped":
            what = ", ".join(f"rank {rank} on {host} has left" for rank, host, _ in leavers) or "a host has joined"
            for _, _, node in leavers:
                if node in self.hosts:
                    self.gone.add(node)
                else:
                    self.left += 1
        elif status.get("state") == "failed" and not (status.get("mpi") and end.where):
            what = f"rank {status.get('rank')} on {status.get('host')} has failed ({status.get('error')})"
        elif end.where:
            what = f"{end.where} is gone"
        else:
            what = f"the job has ended, status {end.status}"
        _say(f"{what}; the job was cleared away in {ended - end.noticed:.2f} s; starting again")
        told = {"what": what, "lost": end.lost, "noticed": end.noticed, "cleared": ended, "restarts": self.restarts}
        return told | ({"stopped": status["step"]} if status.get("state") == "stopped" else {})

    def _back_off(self, fruitful: bool) -> None:
        self.fruitless = 0 if fruitful else self.fruitless + 1
        if self.fruitless > 1:  # a loss may well strike while the last one is being made good
            wait = min(_MOST_WAIT, self.options.back_off * 2 ** (self.fruitless - 2))
            until = time.time() + wait
            while time.time() < until and not self.signal:
                time.sleep(min(0.1, wait))


# ---- hosts and words ---------------------------------------------------------------------------------------------


def _without(flags: Sequence[str], *names: str) -> list[str]:
    """Flags without some of them."""
    left: list[str] = []
    skip = False
    for word in flags:
        if skip:
            skip = False
        elif word in (f"--{name}" for name in names):
            skip = True
        elif not any(word.startswith(f"--{name}=") for name in names):
            left.append(word)
    return left


def _output(command: str) -> str:
    """What a probe prints; nothing if it takes too long."""
    try:
        return subprocess.run(command, shell=True, capture_output=True, text=True, timeout=_PROBE).stdout
    except subprocess.TimeoutExpired:
        _say(f"the probe was given up after {_PROBE:g} s: {command}")
        return ""


def hosts_in(text: str) -> list[str]:
    """A host for each rank, from `a,b:4`."""
    names: list[str] = []
    for word in filter(None, text.split(",")):
        host, _, count = word.partition(":")
        if not host or (count and not count.isdigit()):
            raise UserError(f"hosts: expected names as in a,b:4, got {word!r}")
        names += [host] * int(count or 1)
    return names


def _reach(host: str) -> bool:
    try:
        command = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=3", host, "true"]
        return subprocess.run(command, capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _version(mpirun: str) -> str:
    done = subprocess.run([*shlex.split(mpirun)[:1], "--version"], capture_output=True, text=True)
    return done.stdout + done.stderr
