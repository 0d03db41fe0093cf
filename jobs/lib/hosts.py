"""Hosts with addresses and rate-limited links of their own, on this one machine: messages take the time they take.

Usage: python -m ringtmp.jobs.lib.hosts --hosts 4 --rate 100mbit -- python -m ringtmp.train ... Brings the hosts up,
runs a program with one rank on each, prints what went over each link, takes all down. Needs Linux, root and MPICH.

A host is a process (pid 1 there) with net, uts, ipc, pid and mount namespaces and its own /dev/shm: with a net
namespace alone MPI finds shared memory and leaves the link empty. Files are shared, as over NFS. All hosts hang on one
switch, and mpirun runs at the switch, in the machine's own pid namespace, the only one from which all hosts can be
entered. Nothing of it has a name outside, so several sets of hosts do not meet; and pid 1 ends with its standard input,
so that all is gone with the process that made it, whatever way that ended.

The kernel limits rates (tbf, at both ends of a link); it adds no delay. Stay at 50 to 100 Mbit/s: far above, ranks that
share a core are limited by the processor. A TCP connection has yet to open its window: send something large first.
MPICH takes a send for done only once the other side has read all of it, inside MPI, however small it is.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ringtmp.errors import UserError
from ringtmp.jobs.lib.launch import MPIRUN

MPIRUN_TO_HOSTS = (MPIRUN, "-launcher", "ssh", "-launcher-exec", "/dev/shm/agent")
GRACE = 10.0  # seconds that an interrupted program has to write its checkpoint
_SWITCH = ("unshare", "--net", "--uts", "--ipc", "--mount")
_HOST = (*_SWITCH, "--pid", "--fork", "--kill-child", "--mount-proc")
_TBF = "root tbf burst 32kb latency 20ms rate"
_TRY = f"ip link add one type veth peer name two && ip link add hub type bridge && tc qdisc add dev one {_TBF} 1mbit"
# MPICH by itself takes UCX; OFI by itself takes `sockets`, which moves nothing while the sender computes.
MPICH_OVER_TCP = {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp"}
# What pid 1 does; $1 is the host's name, $2 the /etc/hosts of all. No IPv6: it talks unasked, and has addresses too.
_HOLD = """set -e
for each in all default; do echo 1 >/proc/sys/net/ipv6/conf/$each/disable_ipv6 || :; done 2>/dev/null
echo "$1" >/proc/sys/kernel/hostname
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
echo "$2" >/dev/shm/hosts && mount --bind /dev/shm/hosts /etc/hosts
echo ready && exec cat"""
# What mpirun calls as it would call ssh: [-x] HOST WORDS...
_AGENT = """#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do shift; done
case $1 in {cases} *) echo "there is no host $1" >&2; exit 255;; esac; shift
cd /proc/$pid/ns && exec nsenter --net=net --uts=uts --ipc=ipc --mount=mnt --pid=pid_for_children /bin/sh -c "$*"
"""


def why_not() -> str | None:
    """Why hosts cannot be made here, in one line; None if they can."""
    if missing := [tool for tool in ("ip", "tc", "unshare", "nsenter", "mount", "sh") if not shutil.which(tool)]:
        return f"hosts need {', '.join(missing)} (of util-linux and iproute2)"
    if not shutil.which(MPIRUN) or b"HYDRA" not in subprocess.run([MPIRUN, "--version"], capture_output=True).stdout:
        return f"hosts need MPICH's mpirun, and {MPIRUN} is none"
    done = subprocess.run([*_HOST, "sh", "-c", _TRY], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        return f"namespaces, veth or tbf are not permitted to user {os.geteuid()} here: {' '.join(done.stderr.split())}"
    return None


class Hosts:
    """Hosts on one switch, host0, host1, ..., up for the length of a `with` block.

    Parameters
    ----------
    number : int
        Number of hosts, 1 to 200.
    rate : str or None
        Rate of each link, in each direction, such as "100mbit" (bits a second); None: no limit.
    """

    def __init__(self, number: int, rate: str | None = None) -> None:
        if not 1 <= number <= 200:
            raise UserError(f"expected 1 to 200 hosts, got {number}")
        self.names, self.rate = [f"host{at}" for at in range(number)], rate
        _check(rate)
        self._held: dict[str, subprocess.Popen[str]] = {}  # what keeps each host, and the switch, up
        self._nets: set[str] = set()
        self._spared: set[int] = set()

    def __enter__(self) -> "Hosts":
        if why := why_not():
            raise UserError(why)
        try:
            self._up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        for process in self._held.values():
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=5)  # it ends with its input
            process.kill()
            process.wait()
        self._held, self._nets, self._spared = {}, set(), set()

    def _up(self) -> None:
        addresses = {name: f"10.77.0.{at}" for at, name in enumerate([*self.names, "switch"], 1)}
        table = "\n".join(["127.0.0.1 localhost", *(f"{address} {name}" for name, address in addresses.items())])
        for name in addresses:
            self._held[name] = subprocess.Popen(
                [*(_SWITCH if name == "switch" else _HOST), "sh", "-c", _HOLD, "sh", name, table],
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        for name, process in self._held.items():
            assert process.stdout and process.stderr
            if process.stdout.readline() != "ready\n":
                raise UserError(f"{name} did not come up: {' '.join(process.stderr.read().split())}")
        self._nets = {_net(process.pid) for process in self._held.values()} - {_net(os.getpid()), ""}
        self._spared = self._running()
        self._in(
            "switch",
            "ip -batch -",
            [
                "link set lo up",
                "link add switch type bridge mcast_snooping 0",
                "link set switch up",
                f"addr add {addresses['switch']}/24 dev switch",
                *(f"link add {name} type veth peer name eth0 netns {self._held[name].pid}" for name in self.names),
                *(f"link set {name} master switch up" for name in self.names),
            ],
        )
        for name in self.names:  # cubic, whatever the default is: BBR paces its packets
            self._in(
                name,
                "ip -batch -",
                [
                    "link set lo up",
                    "link set eth0 up",
                    f"addr add {addresses[name]}/24 dev eth0",
                    f"route replace 10.77.0.0/24 dev eth0 scope link src {addresses[name]} congctl cubic",
                ],
            )
        agent = Path(f"/proc/{self._held['switch'].pid}/root/dev/shm/agent")
        agent.write_text(_AGENT.format(cases=" ".join(f"{name}) pid={self._held[name].pid};;" for name in self.names)))
        agent.chmod(0o755)
        self.set_rate(self.rate)

    def set_rate(self, rate: str | None) -> None:
        """Limit every link to `rate` in each direction from now on; None: no limit."""
        _check(rate)
        how = f"{_TBF} {rate}" if rate else "root noqueue"
        self._in("switch", "tc -batch -", [f"qdisc replace dev {name} {how}" for name in self.names])
        for name in self.names:
            self._in(name, "tc -batch -", [f"qdisc replace dev eth0 {how}"])
        self.rate = rate

    def cut(self, rank: int) -> None:
        """Take the link of host number `rank` down at the switch; its processes continue."""
        self._in("switch", f"ip link set {self.names[rank]} down")

    def lose(self, rank: int) -> None:
        """Switch host number `rank` off: its processes die, and no connection is closed on the network."""
        self.cut(rank)
        with suppress(OSError):
            os.killpg(self._held[self.names[rank]].pid, signal.SIGKILL)

    def at_switch(self, folder: Path | None = None) -> list[str]:
        """Words that run a program at the switch, from which all hosts can be entered; in `folder` if it is given."""
        enter = ["nsenter", f"--target={self._held['switch'].pid}", "--net", "--uts", "--mount"]
        return [*enter, f"--wd={folder}"] if folder else enter

    def bytes(self) -> dict[str, tuple[int, int]]:
        """Bytes that each host has sent and received so far, headers included, by the counters of its link."""
        ports = {link["ifname"]: link["stats64"] for link in json.loads(self._in("switch", "ip -s -j link"))}
        return {name: (ports[name]["rx"]["bytes"], ports[name]["tx"]["bytes"]) for name in self.names}

    def mpirun(
        self,
        words: Sequence[str],
        ranks: int | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = ".",
        timeout: float | None = None,
        capture: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on the hosts, under MPICH over TCP, and leave no process behind. One at a time.

        Parameters
        ----------
        words : sequence of str
            The program and its arguments.
        ranks : int, optional
            Number of ranks, by default one for each host. Dealt in ascending order; those on one host share its memory.
        env : mapping, optional
            Overrides this process's environment, and the settings that make MPICH use TCP.
        cwd : path
            Working folder of the program.
        timeout : float, optional
            Seconds after which the program is killed, and `UserError` raised.
        capture : bool
            Whether to return its output, as text; otherwise it goes where this process's output goes.
        """
        each = -(-(ranks or 1) // len(self.names))
        command = [
            *self.at_switch(),
            *MPIRUN_TO_HOSTS,
            "-wdir",
            str(Path(cwd).resolve()),
            "-hosts",
            ",".join(f"{name}:{each}" for name in self.names),
            "-n",
            str(ranks or len(self.names)),
            *words,
        ]
        pipe, env = subprocess.PIPE if capture else None, os.environ | MPICH_OVER_TCP | dict(env or {})
        with subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        ) as job:
            try:
                out, err = job.communicate(timeout=timeout)
            except subprocess.TimeoutExpired as error:
                last = (error.stderr or error.stdout or b"").decode(errors="replace").strip().rpartition("\n")[2]
                what = " ".join(" ".join(words).split())
                raise UserError(f"no end within {timeout:g} s on the hosts: {what}; its last line: {last}") from None
            except KeyboardInterrupt:
                job.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    job.communicate(timeout=GRACE)
                raise
            finally:
                job.kill()
                self._kill()
                job.wait()
        return subprocess.CompletedProcess(list(words), job.returncode, out, err)

    def _running(self) -> set[int]:
        """Processes at the hosts and the switch, without those that keep them up."""
        every = set(map(int, filter(str.isdecimal, os.listdir("/proc")))) - self._spared
        return {pid for pid in every if _net(pid) in self._nets}

    def _kill(self) -> None:
        deadline = time.monotonic() + 5
        while (left := self._running()) and time.monotonic() < deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def _in(self, name: str, words: str, lines: Sequence[str] = ()) -> str:
        enter = ["nsenter", f"--target={self._held[name].pid}", "--net", *words.split()]
        done = subprocess.run(enter, input="\n".join([*lines, ""]), text=True, capture_output=True)
        if done.returncode:
            raise UserError(f"{name}: {words}: {' '.join(done.stderr.split())}")
        return done.stdout


def _check(rate: str | None) -> None:
    if rate is not None and not re.fullmatch(r"(?=.*[1-9])\d+(\.\d+)?[kmg]bit", rate):
        raise UserError(f'expected a rate in kbit, mbit or gbit a second such as "100mbit", or none, got {rate!r}')


def _net(pid: int) -> str:
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/net")
    return ""  # it has ended


def main() -> int:
    """Make hosts, run the program, print what went over each link, take the hosts down; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--rate", default="100mbit", help='such as "100mbit", in each direction, or "none"')
    parser.add_argument("--ranks", type=int, help="one on each host by default")
    parser.add_argument("program", nargs="+")
    given = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell has started us to ignore them
        signal.signal(number, signal.default_int_handler)
    status = 128 + signal.SIGINT
    try:
        with suppress(KeyboardInterrupt), Hosts(given.hosts, None if given.rate == "none" else given.rate) as hosts:
            with suppress(KeyboardInterrupt):
                status = hosts.mpirun(given.program, given.ranks, capture=False).returncode
            for name, (sent, received) in hosts.bytes().items():
                print(f"{name}: sent {sent / 1e6:.3f} MB, received {received / 1e6:.3f} MB")
    except UserError as error:
        parser.exit(2, f"hosts: {error}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
