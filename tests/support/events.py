"""Frames of events and ranks made by hand, as `ringtmp.analysis` reads them from traces."""

import numpy as np
import pandas as pd

COLUMNS = ["rank", "kind", "start", "end", "step", "stage", "peer", "bytes", "version", "micro_batch"]


def frame(rows):
    """Rows of (rank, kind, start, end, step, stage, peer, bytes, version, micro_batch), of which the last may lack."""
    ends = (-1, -1, 0, -1, -1)
    events = pd.DataFrame([(*row, *ends[len(row) - 5 :]) for row in rows], columns=COLUMNS)
    narrow = {"step": "int32", "stage": "int16", "peer": "int32", "version": "int32", "micro_batch": "int32"}
    return events.astype({"start": "int64", "end": "int64", "bytes": "int64", **narrow})


def table(roles, consistency="bsp", bound=0, wall=1000):
    """One row a rank; `roles` is a letter each: s(erver), w(orker), b(oth)."""
    names = {"s": "server", "w": "worker", "b": "both"}
    working = [rank for rank, role in enumerate(roles) if role in "wb"]
    rows = [
        {
            "rank": rank,
            "role": names[role],
            "consistency": consistency,
            "bound": bound,
            "workers": working,
            "began": 5_000,
            "ended": 5_000 + wall,
        }
        for rank, role in enumerate(roles)
    ]
    return pd.DataFrame(rows)


def events_of(rows):
    """A frame of hand-made events: (rank, kind, start, end, step, micro_batch, stage, version)."""
    names = ["rank", "kind", "start", "end", "step", "micro_batch", "stage", "version"]
    return pd.DataFrame(rows, columns=names).assign(peer=-1, bytes=0)


CAUSES = ["server", "slower", "bound", "neighbour", "other"]


def nanoseconds(found):
    """By rank, the causes in whole nanoseconds."""
    assert list(found.columns) == CAUSES
    assert found.index.name == "rank"
    rows = np.rint(found.to_numpy() * 1e9).astype(int).tolist()
    return {rank: tuple(row) for rank, row in zip(found.index, rows, strict=True)}
