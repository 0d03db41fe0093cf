"""The cores that control groups grant, in both versions of them."""

import pytest

from ringtmp.trace.machine import core_limit


def groups(tmp_path, line, files):
    """A tree of control groups, and the file that says in which of them the process is."""
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    mine = tmp_path / "mine"
    mine.write_text(line)
    return tmp_path / "fs", mine


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 50000\n"}, 4.0),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000\n", "a/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/a\n", {"cpu.max": "50000 100000\n"}, 0.5),  # seen from within a container
        ("0::/a\n", {"a/cpu.max": "max 100000\n"}, None),
        ("0::/a\n", {}, None),
        ("3:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "50000\n", "cpu/x/cpu.cfs_period_us": "25000\n"}, 2.0),
        ("3:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1\n", "cpu/x/cpu.cfs_period_us": "25000\n"}, None),
        ("4:memory:/x\n", {"cpu/x/cpu.cfs_quota_us": "50000\n", "cpu/x/cpu.cfs_period_us": "25000\n"}, None),
        ("0::/a\n", {"a/cpu.max": "rubbish\n"}, None),
    ],
)
def test_core_limit(tmp_path, line, files, expected):
    assert core_limit(*groups(tmp_path, line, files)) == expected


def test_without_control_groups(tmp_path):
    assert core_limit(tmp_path, tmp_path / "none") is None
