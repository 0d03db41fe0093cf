"""What to try next: each rule, and which of two comes first."""

from math import nan

import pytest

from ringtmp.run.output.advice import Measured, advice

GOOD = Measured(
    ranks=4,
    room=4,
    cores_each=1.0,
    threads=1,
    rings=1,
    emulated=False,
    ring=True,
    transfer=0.05,
    neighbour=0.05,
    core=0.0,
    checkpoint=0.0,
    unequal=1.1,
    layers=9,
    batch_size=64,
    micro_batches=8,
    balanced=False,
    shared=False,
    lr=0.001,
    steps=660,
    checkpoint_every=200,
    first_loss=2.3,
    last_loss=0.1,
    score=0.98,
    guess=0.1,
    folder="runs/a",
)
CROWDED = {"ranks": 8, "room": 2, "cores_each": 0.25, "core": 0.6}
BESIDE = "the same settings there show which is faster here"
GOOD_RUN = f"ringtmp serve: nothing to mend here; {BESIDE}"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # Nothing to mend.
        ({}, GOOD_RUN),
        ({"ring": False}, GOOD_RUN.replace("serve", "train")),
        ({"first_loss": nan, "score": nan, "guess": nan}, GOOD_RUN),
        ({"ranks": 1, "cores_each": 16.0}, "-n 9: this host has a core for each of 9 ranks"),
        ({"ranks": 1, "cores_each": 16.0, "threads": 4}, "-n 4: this host has a core for each of 4 ranks"),
        ({"ranks": 1, "cores_each": 16.0, "emulated": True}, GOOD_RUN),
        # It does not learn: before everything else.
        ({"last_loss": 2.3, **CROWDED}, "--lr 0.0001: the loss did not fall with 0.001"),
        (
            {"score": 0.1, **CROWDED},
            "--epochs: the test score is not above that of guessing; train for longer, or with another --lr",
        ),
        # Shared cores: before everything that they hide.
        (
            {"neighbour": 0.3, "transfer": 0.3, **CROWDED},
            "-n 2: a rank for each core; ranks waited for a core for 60% of their time",
        ),
        ({**CROWDED, "core": nan}, "-n 2: a rank for each core; ranks share cores"),
        ({**CROWDED, "core": 0.01}, GOOD_RUN),
        ({**CROWDED, "emulated": True}, GOOD_RUN),
        (
            {**CROWDED, "rings": 2},
            "--rings 1 -n 2: a rank for each core; ranks waited for a core for 60% of their time",
        ),
        (
            {**CROWDED, "threads": 2, "room": 1},
            "-n 1: a rank for each 2 cores; ranks waited for a core for 60% of their time",
        ),
        (
            {"threads": 4, "cores_each": 2.5, "core": 0.4},
            "--threads 2: a core for each thread; ranks waited for a core for 40% of their time",
        ),
        # Checkpoints, if there were any before the last.
        ({"checkpoint": 0.2}, "--checkpoint-every 800: checkpoints took 20% of the ranks' time"),
        ({"checkpoint": 0.2, "steps": 100}, GOOD_RUN),
        # Messages.
        (
            {"transfer": 0.3},
            "--micro-batches 4: messages took 30% of the ranks' time; fewer micro-batches are larger",
        ),
        ({"transfer": 0.3, "micro_batches": 4}, "-n 2: messages took 30% of the ranks' time; fewer ranks send less"),
        (
            {"transfer": 0.3, "ring": False},
            "--batch-size 128: messages took 30% of the ranks' time; larger batches exchange gradients less often",
        ),
        # Waits for other ranks.
        (
            {"neighbour": 0.3, "unequal": 1.5},
            "--balance auto: ranks waited for others for 30% of their time, and one rank computed 1.5 times as long "
            "as the mean",
        ),
        (
            {"neighbour": 0.3, "unequal": 1.5, "balanced": True},
            "--micro-batches 16: ranks waited for others for 30% of their time; more micro-batches fill a step's "
            "begin and end",
        ),
        (
            {"neighbour": 0.3, "unequal": 1.5, "layers": 4, "micro_batches": 12, "batch_size": 15},
            "--micro-batches 15: ranks waited for others for 30% of their time; more micro-batches fill a step's "
            "begin and end",
        ),
        (
            {"neighbour": 0.3, "micro_batches": 16},
            "ringtmp plan --trace runs/a: ranks waited for others for 30% of their time; the plan says why, and what "
            "would be faster",
        ),
        (
            {"neighbour": 0.3, "micro_batches": 8, "batch_size": 8, "folder": ""},
            "--trace on: ranks waited for others for 30% of their time; ringtmp plan --trace RUN then says why",
        ),
        (
            {"neighbour": 0.3, "ring": False},
            "--colocate on: ranks waited for others for 30% of their time; a server on every rank shares the work",
        ),
        (
            {"neighbour": 0.3, "ring": False, "shared": True},
            f"ringtmp train: ranks waited for others for 30% of their time; {BESIDE}",
        ),
    ],
)
def test_advice(changes, expected):
    assert advice(GOOD._replace(**changes)) == expected
