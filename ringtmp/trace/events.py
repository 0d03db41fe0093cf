"""Events of a trace: their kinds, the part of the wall time that each kind belongs to, and their fields."""

import numpy as np

FORMAT = "ringtmp-trace-2"  # attribute `format` of a trace file
PARTS = ("compute", "transfer", "wait", "checkpoint", "other")

KINDS = {
    "F": "compute",
    "I": "compute",
    "W": "compute",
    "U": "compute",
    "E": "compute",  # forward of an evaluation
    "data": "other",  # reading a micro-batch from the data set
    "send": "transfer",
    "replicate": "transfer",  # a part of a state copy leaves for the next node
    "receive": "transfer",  # the poll in which a message arrived
    "wait": "wait",  # nothing can run: blocked on another rank
    "checkpoint": "checkpoint",
    "trace": "other",  # writing the trace file
    "balance": "other",  # moving layers between ranks
    "across": "transfer",  # a part of a gradient leaves for another ring
}
CODES = {kind: code for code, kind in enumerate(KINDS)}

EVENT = np.dtype(
    [
        ("start", "<i8"),  # nanoseconds of the rank's own clock
        ("end", "<i8"),
        ("bytes", "<i8"),
        ("step", "<i4"),
        ("micro_batch", "<i4"),
        ("peer", "<i4"),
        ("version", "<i4"),  # updates contained in the weights that the action used (U: made)
        ("stage", "<i2"),
        ("kind", "<i2"),  # index into `KINDS`
    ]
)


def part_of(kind: str) -> str:
    """The member of `PARTS` that an event of `kind` belongs to; B (I and W as one action of a plan) is compute."""
    return "compute" if kind == "B" else KINDS.get(kind, "other")
