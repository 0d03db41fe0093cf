"""One picture of one step under every schedule, from traces of real runs.

Usage: mpirun -n 2 ringtmp experiment schedules [FILE.png]

Trains the same network under naive, GPipe and 1F1B plans and in ready mode, and draws two steps of each on one time
scale. With more ranks than cores the picture shows the cores and not the schedules. Collective over the world.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ringtmp.jobs.lib.experiment import Experiment, experiment
from ringtmp.jobs.lib.launch import ROOT
from ringtmp.jobs.lib.plot import figure

WAYS: dict[str, dict[str, Any]] = {
    "naive": {"schedule": "naive"},
    "gpipe": {"schedule": "gpipe"},
    "1f1b": {"schedule": "1f1b"},
    "zb-h2": {"schedule": "zb-h2"},
    "ready (no plan: the local rule)": {"mode": "ready"},
}
TRAIN = {
    "model": "mlp:64-768x9-10",
    "data": "digits",
    "batch_size": 128,
    "micro_batches": 8,
    "steps": 44,
    "eval_every": 0,
}


def train_and_draw(path: Path) -> None:
    """Train, then draw into the file `path` on rank 0. Collective over the world."""
    from mpi4py import MPI

    import ringtmp
    from ringtmp.analysis import open_run

    comm = MPI.COMM_WORLD
    folder = comm.bcast(tempfile.mkdtemp() if comm.rank == 0 else None)
    digests = set()
    for number, way in enumerate(WAYS.values()):
        result = ringtmp.train(comm=comm, out=folder, name=str(number), progress=False, **TRAIN, **way)
        digests.add(result.sha256)
    comm.Barrier()
    if comm.rank == 0:
        if len(digests) != 1:
            raise SystemExit(f"the schedules do not agree: {digests}")
        draw([open_run(Path(folder) / str(number)) for number in range(len(WAYS))], path)


def draw(runs: list[Any], path: Path) -> None:
    """Draw two steps of each of `runs`, the median ones, over one time axis into the file `path`."""
    from ringtmp.analysis import draw_gantt

    with figure(path, len(runs), figsize=(12, 8.0)) as (made, grid):
        axes = grid[:, 0]
        for ax, (name, run) in zip(axes, zip(WAYS, runs, strict=True), strict=True):
            events = run.events()
            ends = events[events["kind"] == "U"].groupby("step")["end"].max()
            lengths = ends.diff().iloc[10:]
            step = int((lengths - lengths.median()).abs().idxmin())
            shown = events[events["kind"].isin(["F", "I", "W", "U", "wait"])]
            draw_gantt(shown, ax, steps=(step, step + 1))
            table = run.breakdown()
            idle = table["wait"].sum() / table["wall"].sum()
            ax.set_title(f"{name}: {lengths.median() / 1e6:.1f} ms a step, idle {idle:.0%}", loc="left", fontsize=10)
            ax.set_xlabel("milliseconds" if ax is axes[-1] else "")
            ax.tick_params(labelbottom=ax is axes[-1])
        handles, labels = axes[0].get_legend_handles_labels()
        for ax in axes:
            ax.get_legend().remove()
        made.legend(handles, labels, ncols=5, loc="outside upper right", frameon=False, fontsize=9)
        limit = max(ax.get_xlim()[1] for ax in axes)
        for ax in axes:
            ax.set_xlim(0, limit)
    print(f"written to {path}")


@experiment
class Schedules(Experiment):
    """A picture of two steps of each schedule."""

    name, about, order = "schedules", "one picture of a step under each schedule (under mpirun)", 120

    def main(self, words: Sequence[str]) -> int:
        """Train under every schedule and draw; the exit status. Collective over the world."""
        if words and words[0] in ("-h", "--help"):
            print(self.question)
        else:
            train_and_draw(Path(words[0]) if words else ROOT / "jobs" / "figures" / "schedules.png")
        return 0
