"""Start a job, watch it, and restart it on the remaining hosts: the work of `ringtmp supervise`."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType, SimpleNamespace
from typing import Any

from ringtmp.comm import ulfm
from ringtmp.errors import UserError
from ringtmp.resilience.incident import SUPERVISED
from ringtmp.resilience.job_process import End, JobProcess
from ringtmp.resilience.standby import STANDBY, give_order, give_sign_of_life
from ringtmp.storage.run_folder import RunFolder

TRY_AGAIN = 75  # exit status (EX_TEMPFAIL) after SIGUSR1 to the supervisor: the run is to be continued later
_PROBE = 60.0  # seconds that a probe of hosts (--probe) may take
_FRUITLESS = 8  # starts in a row that make no step, after which the job is given up
_MOST_WAIT = 60.0  # longest pause between two starts, in seconds


def _say(text: str) -> None:
    with suppress(OSError):
        print(f"supervise: {text}", file=sys.stderr, flush=True)


class Supervisor:
    """Restarts a job until it ends by itself.

    Parameters
    ----------
    options : SimpleNamespace
        Parameters of `ringtmp supervise`.
    program, flags : sequence of str
        The command to start, up to the module; and the module's flags.
    folder : RunFolder
        Folder of the run, which may not exist yet.
    """

    def __init__(
        self, options: SimpleNamespace, program: Sequence[str], flags: Sequence[str], folder: RunFolder
    ) -> None:
        self.options, self.program, self.flags, self.folder = options, program, flags, folder
        self.hosts = hosts_in(options.hosts) if options.hosts else []
        self.signal = 0  # that this process has received
        self.joining = False  # the job has been asked to stop so that a host can join
        self.gone: set[str] = set()  # hosts that have left
        self.restarts = self.fruitless = self.left = 0
        self.survives_losses = "--with-ft" in options.mpirun or ulfm.asked()
        self.names: list[str] = []  # host of each rank of the running job
        self.waiting = self.folder.path / ".standby"
        self.spare: JobProcess | None = None  # a job in stand-by
        self.ended: JobProcess | None = None  # the last one
        self.spares, self.order = 0, self.waiting
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def run(self) -> int:
        """Start and restart the job until its end; return the exit status."""
        cause: dict[str, Any] = {}
        try:
            while True:
                # Start the job, on whichever hosts have room.
                names = self._usable_hosts()
                if self.signal:
                    return self._stopped()
                before, job = self._step(), self._start(names, cause)
                self._sweep()

                # Wait for its end, and kill its remaining processes.
                end = self._watch(job)
                job.clear()
                self.ended, ended = job, time.time()

                # Decide whether to restart it.
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
        """Start the job on hosts `names`, by an order to the processes in stand-by if they are on these hosts."""
        env = self._environment(names, cause)
        if self.spare and self.spare.process.poll() is None and self.names == names:
            job, self.spare = self.spare, None
            job.started = time.time()
            give_order(self.order, env)
        else:
            self._dismiss()
            job = JobProcess(self._command(names), env, self.survives_losses)
        self.names = names
        return job

    def _watch(self, job: JobProcess) -> End:
        """Wait for the end of the job; meanwhile pass signals on, look for hosts that are back, start a stand-by."""
        passed_on, look, begun = 0, time.time() + self.options.probe_every, self._step()
        while True:
            end = job.wait(self.folder if self._begun() else None, time.time() + 0.25)
            if end:
                return end

            # Pass a signal on.
            if self.signal != passed_on:
                passed_on = self.signal
                job.send_signal(signal.SIGTERM if passed_on == signal.SIGUSR1 else passed_on)

            # Stop a job that has too few ranks once there is room for more; it is restarted with these.
            if not (passed_on or self.joining) and time.time() > look and len(self.names) < self.options.ranks:
                look = time.time() + self.options.probe_every
                if len(self._find_hosts()) > len(self.names):
                    self.joining = True
                    job.send_signal(signal.SIGTERM)

            # Start processes in stand-by, once the job trains.
            if self._begun():
                give_sign_of_life(self.waiting)
                if self.options.standby == "on" and not self.spare and self._step() > begun:
                    self._start_spare()

    def _start_spare(self) -> None:
        """Start processes that load everything and wait for an order."""
        self.spares += 1
        self.order = self.waiting / f"launch-{self.spares}"
        self.spare = JobProcess(self._command(self.names), {STANDBY: str(self.order.resolve())}, self.survives_losses)

    def _dismiss(self) -> None:
        """End the processes in stand-by."""
        if self.spare:
            self.spare.clear()
            self.spare = None

    def _sweep(self) -> None:
        """Remove the shared memory that the last job has left, while the next one starts."""
        if self.ended:
            self.ended.sweep()
            self.ended = None

    # ---- what to start, and where -------------------------------------------------------------------------------

    def _begun(self) -> bool:
        """Whether the run folder exists."""
        return (self.folder.path / "config.toml").exists()

    def _step(self) -> int:
        """The newest step in the run's history; 0: none."""
        try:
            last = self.folder.history.read_text().rstrip("\n").rsplit("\n", 1)[-1]
            return int(last.split(",")[1])
        except (OSError, ValueError, IndexError):
            return 0

    def _find_hosts(self) -> list[str]:
        """The host of each rank for which there is room now; empty names where all ranks run on this machine."""
        if self.options.probe:
            found = hosts_in(",".join(_output(self.options.probe).split()))
        elif self.hosts and not self.options.emulate:
            reached = {host for host in dict.fromkeys(self.hosts) if _is_reachable(host)}
            found = [host for host in self.hosts if host in reached]
        else:
            found = self.hosts or [""] * (self.options.ranks - self.left)
        return [host for host in found if host not in self.gone or not host][: self.options.ranks]

    def _usable_hosts(self) -> list[str]:
        """Wait until enough ranks have room (--min-ranks), or for a signal; the host of each rank."""
        said = False
        while True:
            names = self._find_hosts()
            if len(names) >= max(1, self.options.min_ranks) or self.signal:
                return names
            if not said:
                _say(f"{len(names)} ranks have room, {self.options.min_ranks} are needed (--min-ranks): waiting")
                said = True
            time.sleep(min(self.options.probe_every, 1.0))

    def _command(self, names: list[str]) -> list[str]:
        """Command line of a job with a rank on each of the hosts `names`, which resumes the run if it has begun."""
        launcher = [*shlex.split(self.options.mpirun), "-n", str(len(names))]
        if any(names) and not self.options.emulate:
            launcher += ["-hosts" if "Open MPI" not in _version(self.options.mpirun) else "-host", ",".join(names)]
        if not self._begun():
            return [*launcher, *self.program, *self.flags]
        return [*launcher, *self.program, *_without(self.flags, "name", "resume"), "--resume", str(self.folder.path)]

    def _environment(self, names: list[str], cause: dict[str, Any]) -> dict[str, str]:
        """Environment variables that state that a supervisor restarts the job, and why it was restarted."""
        env = {SUPERVISED: json.dumps(cause | {"started": time.time()} if cause else {})}
        if self.options.emulate and any(names):
            env["RINGTMP_NODES"] = ",".join(names)
        return env

    # ---- after an end ------------------------------------------------------------------------------------------

    def _verdict(self, end: End, status: dict[str, Any]) -> int | None:
        """Decide whether to restart the job.

        Parameters
        ----------
        end : End
            How it ended.
        status : dict
            The job's own statement on its end; empty: none.

        Returns
        -------
        int or None
            Exit status of the supervisor; None: restart the job.
        """
        state = status.get("state")
        if state == "finished":
            return 0 if status.get("saved", True) else 1
        if state == "stopped":
            return None if self._leaves(status) else self._stopped(status.get("signal", 0))
        if self.signal:
            return self._stopped()
        if end.status == 2 and not state:
            return 2  # bad input: the job has said so
        self.restarts += 1
        if self.restarts > self.options.max_restarts:
            _say(f"given up after {self.options.max_restarts} restarts (--max-restarts); {self._advice()}")
            return 1
        if self.fruitless >= _FRUITLESS:
            _say(f"given up: {self.fruitless} starts in a row made no step; {self._advice()}")
            return 1
        return None

    def _leaves(self, status: dict[str, Any]) -> bool:
        """Whether the job has stopped only to be restarted on other hosts."""
        return not self.signal and (self.joining or bool(status.get("leavers")))

    def _stopped(self, number: int = 0) -> int:
        """Exit status after a stop by a signal: this process's, or else `number`, the job's."""
        number = self.signal or number
        if number == signal.SIGUSR1:
            _say(f"stopped; {self._advice()}")
            return TRY_AGAIN
        return 128 + number

    def _advice(self) -> str:
        """How to continue the run, for a message."""
        return f"continue with the same command, or --resume {self.folder.path}" if self._begun() else "no run began"

    def _cause(self, end: End, status: dict[str, Any], ended: float) -> dict[str, Any]:
        """Describe the end of a job, for the report of the next launch; see `RecoveryReport`."""
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
        _say(f"{what}; the job was removed in {ended - end.noticed:.2f} s; restarting")
        cause = {"what": what, "lost": end.lost, "noticed": end.noticed, "cleared": ended, "restarts": self.restarts}
        return cause | ({"stopped": status["step"]} if status.get("state") == "stopped" else {})

    def _back_off(self, fruitful: bool) -> None:
        """Pause before a restart if several starts in a row have made no step."""
        self.fruitless = 0 if fruitful else self.fruitless + 1
        if self.fruitless > 1:  # a second loss during the recovery from the first is no reason to wait
            wait = min(_MOST_WAIT, self.options.back_off * 2 ** (self.fruitless - 2))
            until = time.time() + wait
            while time.time() < until and not self.signal:
                time.sleep(min(0.1, wait))


# ---- hosts and flags ---------------------------------------------------------------------------------------------


def _without(flags: Sequence[str], *names: str) -> list[str]:
    """Remove the flags `names`, with their values."""
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
    """What the probe `command` prints; nothing if it takes too long."""
    try:
        return subprocess.run(command, shell=True, capture_output=True, text=True, timeout=_PROBE).stdout
    except subprocess.TimeoutExpired:
        _say(f"the probe was given up after {_PROBE:g} s: {command}")
        return ""


def hosts_in(text: str) -> list[str]:
    """The host of each rank, from a text `text` such as `a,b:4`. Raises `UserError`."""
    names: list[str] = []
    for word in filter(None, text.split(",")):
        host, _, count = word.partition(":")
        if not host or (count and not count.isdigit()):
            raise UserError(f"hosts: expected names as in a,b:4, got {word!r}")
        names += [host] * int(count or 1)
    return names


def _is_reachable(host: str) -> bool:
    """Whether this host can log in to `host` without a password."""
    try:
        command = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=3", host, "true"]
        return subprocess.run(command, capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _version(mpirun: str) -> str:
    """Output of a launcher's `--version`."""
    done = subprocess.run([*shlex.split(mpirun)[:1], "--version"], capture_output=True, text=True)
    return done.stdout + done.stderr
