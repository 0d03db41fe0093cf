"""Where a rank's time has gone, from the bytes of its trace: HDF5 and NumPy, nothing of this project."""

import h5py
import numpy as np


def shares(folder, rank):
    """Of a rank's wall time in its first launch: what its events cover together, and waiting alone."""
    with h5py.File(folder / "traces" / "000" / f"rank-{rank:04d}.h5", locking=False) as file:
        start, end = file["events/start"][()], file["events/end"][()]
        waiting = file["events/kind"][()] == list(file.attrs["kinds"]).index("wait")
        began, ended = int(file.attrs["began"]), int(file.attrs["ended"])
    covered = np.zeros(2)
    for chosen, place in ((slice(None), 0), (waiting, 1)):
        reached = began
        for first, last in sorted(zip(start[chosen].tolist(), end[chosen].tolist(), strict=True)):
            covered[place] += max(0, min(last, ended) - max(first, reached))  # what two events cover counts once
            reached = max(reached, last)
    return covered / (ended - began)
