"""Find the newest checkpoint of a run that is intact, and load layers from it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ringtmp.checkpoint.format import DamagedError, read_layers, read_marker, steps, verify
from ringtmp.errors import UserError
from ringtmp.nn.layer import Array
from ringtmp.nn.layer_state import LayerState
from ringtmp.nn.model import Model
from ringtmp.storage.run_folder import RunFolder


def newest_checkpoint(folder: RunFolder) -> tuple[dict[str, Any], list[str]]:
    """Find the newest checkpoint whose files all have the size and SHA-256 that its marker states.

    Parameters
    ----------
    folder : RunFolder
        Folder of the run.

    Returns
    -------
    marker : dict
        Body of the checkpoint's marker.
    notes : list of str
        Why each newer checkpoint is not used.

    Raises
    ------
    UserError
        The run has no such checkpoint.
    """
    notes: list[str] = []
    for step in reversed(steps(folder.checkpoints)):
        try:
            marker = read_marker(folder.checkpoints, step)
            verify(folder.checkpoints, marker)
            return marker, notes
        except DamagedError as error:
            notes.append(f"checkpoint of step {step} is not used: {error}")
    reason = f": {notes[0]}" if notes else " (checkpoints/ holds none)"
    raise UserError(f"resume: {folder.path} has no checkpoint that can be used{reason}")


def load_layers(
    root: Path, marker: dict[str, Any], model: Model, states: Iterable[LayerState], extra: str = ""
) -> dict[int, dict[str, Array]]:
    """Copy parameters and optimizer slots of a verified checkpoint into layers, one layer at a time.

    The checkpoint holds every slot of the layers' optimizer, which a resumed run cannot change; only layers without
    parameters have none stored.

    Parameters
    ----------
    root : Path
        Folder of the run's checkpoints.
    marker : dict
        Body of the checkpoint's marker.
    model : Model
        The whole model.
    states : iterable of LayerState
        Layers to fill. Their caches are not updated.
    extra : str
        Name of a further slot to return, which is none of the optimizer's.

    Returns
    -------
    dict
        By layer index: the arrays of slot `extra`, by parameter name, if the checkpoint has it.

    Raises
    ------
    UserError
        The checkpoint lacks a layer.
    """
    by_name = {model.layer_name(state.index): state for state in states}
    found: dict[int, dict[str, Array]] = {}
    for record in read_layers(root, marker, by_name):
        state = by_name[record.name]
        state.layer.pack(state.flat, record.parameters)
        for name, flat in state.slots.items():
            state.layer.pack(flat, record.slots.get(name, {}))
        if extra in record.slots:
            found[state.index] = record.slots[extra]
    return found
