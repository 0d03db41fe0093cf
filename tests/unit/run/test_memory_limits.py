"""How much memory a rank may take, and who says so."""

import subprocess
import sys

import pytest

from ringtmp.errors import UserError
from ringtmp.run import memory_limits as module
from ringtmp.run.memory_limits import Limit, limits, tightest, used

GIB = 1 << 30


@pytest.fixture
def free(monkeypatch):
    """A node that sets no limits, with 64 GiB free."""
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "_cgroup", lambda: None)
    monkeypatch.setattr(module, "available", lambda: 64 * GIB)
    return monkeypatch


def test_what_is_free_is_shared_by_the_ranks_of_a_node(free):
    limit = tightest(None, 8)
    assert limit.whose == "what is free on this node over 8 ranks"
    assert abs(limit.size - 8 * GIB - used()) < 1 << 24


def test_what_is_asked_for(free):
    assert tightest("3GiB", 4) == Limit(3 * GIB, "--memory-limit")
    assert tightest("300GiB", 4).whose.startswith("what is free")
    free.setattr(module, "available", lambda: 0)
    assert tightest("off", 4).size > 1 << 60
    with pytest.raises(UserError, match="memory_limit: expected a size"):
        limits("much", 4)


def test_slurm(free):
    free.setenv("SLURM_MEM_PER_NODE", "8192")
    assert tightest(None, 4) == Limit(2 * GIB, "SLURM's memory of the job on this node over 4 ranks")
    free.delenv("SLURM_MEM_PER_NODE")
    free.setenv("SLURM_MEM_PER_CPU", "1024")
    free.setenv("SLURM_CPUS_ON_NODE", "6")
    assert tightest(None, 3).size == 2 * GIB
    free.setenv("SLURM_MEM_PER_CPU", "0")  # all there is
    assert tightest(None, 3).whose.startswith("what is free")
    free.setenv("SLURM_MEM_PER_CPU", "x")
    assert tightest(None, 3).whose.startswith("what is free")


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        ("0::/a/b\n", {"a/memory.max": "2000", "a/b/memory.max": "max"}, 2000),
        ("0::/a/b\n", {"a/memory.max": "2000", "a/b/memory.max": "1500"}, 1500),
        ("0::/\n", {"memory.max": "max"}, None),
        ("5:cpu:/x\n4:memory:/job\n", {"memory/job/memory.limit_in_bytes": "777"}, 777),
        ("4:memory:/job\n", {"memory/job/memory.limit_in_bytes": str(2**63 - 4096)}, None),
        ("0::/gone\n", {}, None),
    ],
)
def test_control_groups(tmp_path, lines, files, expected):
    mine = tmp_path / "cgroup"
    mine.write_text(lines)
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert module._cgroup(tmp_path / "fs", mine) == expected


def test_no_control_group(tmp_path):
    assert module._cgroup(tmp_path, tmp_path / "none") is None


@pytest.mark.parametrize(("name", "flag"), [("RLIMIT_DATA", "-d"), ("RLIMIT_AS", "-v")])
def test_limits_of_the_process(name, flag):
    """What is reserved and not used counts against them, so that much less is left."""
    code = (
        "import resource; from ringtmp.run.memory_limits import tightest, used, reserved, _UNUSED\n"
        f"resource.setrlimit(resource.{name}, (3 << 30, 3 << 30))\n"
        f"limit, rest = tightest('1TiB', 1), reserved('{name}') - used() + _UNUSED['{name}'] - (3 << 30)\n"
        "print(limit.whose, limit.size + rest)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    *whose, rest = done.stdout.split()
    assert " ".join(whose) == f"{name} (ulimit {flag})"
    assert abs(int(rest)) < 1 << 23
