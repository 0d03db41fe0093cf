"""Over TCP, whose receivers keep few messages that they have not asked for: a fast rank far ahead of a slow one."""

import pytest

# MPICH over libfabric's TCP within this host; other MPIs heed none of it, and have to end as well.
TCP = {"MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp"}
COMMON = ("--steps", "2", "--eval-every", "0", "--trace", "off", "--node-speed", "1,0.2")
ALL_REDUCE = (
    "--model",
    "mlp:64-256x17-10",
    "--batch-size",
    "32",
    "--consistency",
    "allreduce",
    "--message-size",
    "16KiB",
)
CHUNKS = (
    "--model",
    "mlp:64-256x7-10",
    "--batch-size",
    "128",
    "--micro-batches",
    "128",
    "--chunks",
    "2",
    "--heartbeat-timeout",
    "30",
)


@pytest.mark.parametrize(
    ("module", "words", "env"),
    [
        pytest.param("ringtmp.train", CHUNKS, {}, id="activations"),
        # As an MPI that keeps few whatever we say: an all-reduce must not wait for what has to leave.
        pytest.param("ps.train", ALL_REDUCE, {"FI_TCP_MAX_SAVED": "64"}, id="all-reduce"),
    ],
)
def test_nobody_waits_for_ever(launch, module, words, env):
    done = launch(2, "-m", module, *words, *COMMON, timeout=60, **TCP, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished at step 2" in done.stdout
