"""What a user at a terminal sees: a live bar, also behind mpirun, whose ranks write into pipes."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios

import pytest
from launching import command

JOB = ("-m", "ringtmp.train", "--model", "mlp:64-64x4-10", "--epochs", "12")


def on_a_terminal(tmp_path, words, columns):
    """The job's output as a terminal of so many columns gets it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    job = subprocess.Popen(words, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    assert job.wait(timeout=60) == 0
    return b"".join(parts).decode()


@pytest.mark.parametrize(("ranks", "columns"), [(0, 80), (1, 140), (3, 80), (3, 140)])
def test_live_bar(tmp_path, ranks, columns):
    """0 ranks: without a launcher. The bar is drawn over and over on one line of the terminal."""
    words = command(ranks, *JOB) if ranks else command(1, *JOB)[3:]
    text = on_a_terminal(tmp_path, words, columns)
    assert text.count("\x1b[2K") >= 2
    assert "━" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    lines = re.split(r"[\r\n]+", plain)
    bars = [line for line in lines if line.startswith("step ")]
    assert all("epoch" in line and "loss" in line for line in bars if not line.startswith("step 0/"))
    if columns > 100:
        assert re.search(r"loss +\d.*train +\d.*test +\d.*samples/s.*left", bars[-1])
    epochs = [re.match(r"epoch +(\d+)/12  .*loss", line) for line in lines if line.startswith("epoch")]
    assert [int(found[1]) for found in epochs] == list(range(1, 13))  # they stay above the bar
    assert all(len(line) <= columns for line in lines if line.startswith(("epoch", "step", "  ", "│")))
    assert any(line.startswith("finished at step 264 after") for line in lines)
    assert "wait for" in plain and "try next: " in plain


def test_plain_lines_in_a_log(train):
    done = train(3, *JOB[2:])
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout
    assert len([line for line in done.stdout.splitlines() if line.startswith("epoch")]) == 12
