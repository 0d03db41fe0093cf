"""Set the values of this rank's layers when a launch begins: new ones, stored ones, or copies from nodes' memory."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ringtmp.checkpoint.loading import load_layers
from ringtmp.nn.layer import Array
from ringtmp.nn.layer_state import LayerState
from ringtmp.nn.stage import Stage
from ringtmp.resilience.recovery import fetch
from ringtmp.ring.layout import Layout
from ringtmp.ring.load_balance import owners
from ringtmp.run.job import Job

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

WEIGHTS_BEFORE = "weights-before"  # slot of a checkpoint with the weights of the step before (2BW)


def set_start_values(comm: "Intracomm", job: Job, layout: Layout, stages: Sequence[Stage]) -> bool:
    """Set parameters and optimizer slots of all layers of this rank. Collective over `comm`.

    Parameters
    ----------
    comm : Intracomm
        The ring.
    job : Job
    layout : Layout
        Which rank holds what.
    stages : sequence of Stage
        Of this rank, to be filled in.

    Returns
    -------
    bool
        Whether the weights of the step before were stored too (2BW), and are in the stages' first stash.
    """
    # Make start values of a new run.
    if job.marker is None:
        for stage in stages:
            stage.initialise(job.config.seed)
        return False

    # Fetch this rank's layers from the nodes that hold copies of them, and send the copies held here; or load a
    # checkpoint.
    stashed = False
    states = [state for stage in stages for state in stage.states]
    if job.recalled:
        ranks = [stage % layout.ranks for stage in owners(layout.ends)]
        by_index = {state.index: state for state in states}
        fetch(comm, job.recalled, ranks, lambda index: (by_index[index].flat, by_index[index].slots))
    else:
        stashed = _load(job, layout, stages, states)
    for stage in stages:
        stage.refresh_cache()
    return stashed


def _load(job: Job, layout: Layout, stages: Sequence[Stage], states: list[LayerState]) -> bool:
    """Load layers from a checkpoint; whether it has filled the stages' first stash."""
    assert job.resume and job.marker
    lagging = layout.schedule.weights == "previous"
    before = load_layers(job.resume.checkpoints, job.marker, job.model, states, WEIGHTS_BEFORE if lagging else "")
    if not lagging or len(before) < len(states):
        return False
    for stage in stages:
        _stash(stage, before)
    return True


def _stash(stage: Stage, before: dict[int, dict[str, Array]]) -> None:
    """Put the weights of the step before, by layer index, into the first stash of a stage."""
    now = [state.flat.copy() for state in stage.states]
    for state in stage.states:
        state.layer.pack(state.flat, before[state.index])
    stage.refresh_cache()
    stage.stash(0)
    for state, flat in zip(stage.states, now, strict=True):
        state.flat[...] = flat
