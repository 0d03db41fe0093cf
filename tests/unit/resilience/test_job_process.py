"""How signals reach the ranks of a job through its launcher."""

import os
import signal

from ringtmp.resilience.job_process import JobProcess


def test_ranks_under_srun_are_told_by_scancel(tmp_path, monkeypatch):
    """srun itself would have them killed at once, without a checkpoint."""
    for name, text in (("srun", "exec sleep 60"), ("scancel", f'echo "$*" >> {tmp_path}/told')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    job = JobProcess(["srun", "-n", "2", "python"], {})
    try:
        job.send_signal(signal.SIGTERM)
        assert (tmp_path / "told").read_text() == "--signal=15 17\n"
        assert job.process.poll() is None
    finally:
        job.clear()


def test_other_launchers_are_sent_the_signal():
    job = JobProcess(["sleep", "60"], {})
    job.send_signal(signal.SIGTERM)
    assert job.process.wait(10) == -signal.SIGTERM
    job.clear()
