"""Hosts with limited links, made of namespaces: traffic goes over the links, and nothing is left behind."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ringtmp.errors import UserError
from ringtmp.jobs.lib.hosts import Hosts, why_not


@pytest.fixture(autouse=True)
def permitted():
    if why := why_not():
        pytest.skip(why)


@pytest.mark.long
def test_same_weights_over_links(train, tmp_path):
    """Every activation and every gradient is seen by the links' counters, and the weights are those of a plain job."""
    job = ["--model", "mlp:64-256x4-10", "--steps", "30", "--eval-every", "0", "--trace", "off", "--name"]
    with Hosts(2, rate="100mbit") as hosts:
        before = hosts.bytes()
        done = hosts.mpirun([sys.executable, "-m", "ringtmp.train", *job, "hosts"], cwd=tmp_path, timeout=100)
        sent, received = (after - at for after, at in zip(hosts.bytes()["host1"], before["host1"], strict=True))
    assert done.returncode == 0, done.stderr
    least = 30 * 64 * 256 * 4  # steps, samples, width of the cut, bytes of a number
    assert least < sent < 2 * least
    assert least < received < 2 * least
    weights = re.findall("weights sha256 .*", done.stdout + train(2, *job, "plain").stdout)
    assert len(weights) == 2
    assert weights[0] == weights[1]


def test_bad_input_leaves_nothing(monkeypatch):
    """An unknown rate is one line; a program that does not end in time is killed, on all hosts."""
    monkeypatch.setenv("HOSTS_OF", mark := f"{os.getpid()}-{time.time_ns()}")
    command = [sys.executable, "-m", "ringtmp.jobs.lib.hosts", "--rate", "fast", "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert re.fullmatch(r"hosts: expected a rate .* \"100mbit\", .* got 'fast'\n", done.stderr)
    with Hosts(2, rate="100mbit") as hosts:
        with pytest.raises(UserError, match=r"no end within 1 s on the hosts: sh -c .* its last line: up"):
            hosts.mpirun(["sh", "-c", "echo up; setsid sleep 1000"], timeout=1)
        assert len(marked(mark)) == 5  # pid 1 of each host and its parent, and the switch
    assert not marked(mark)


def marked(mark: str) -> list[str]:
    """The processes, apart from this one, that have `mark` in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes() and process.name != str(os.getpid()):
                found.append((process / "cmdline").read_text())
        except OSError:  # it has ended
            continue
    return found
