"""The result of a training run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ringtmp.nn.layer import Array
from ringtmp.run.history import COLUMNS

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm
    from pandas import DataFrame

    from ringtmp.nn.model import Model


class Layers(Mapping[str, dict[str, Array]]):
    """Layers by name, each unpacked only when it is read: a model may fill its ranks' memory.

    Parameters
    ----------
    model : Model
        The whole model.
    flat : dict
        By layer index: an array [parameters].
    """

    def __init__(self, model: "Model", flat: dict[int, Array]) -> None:
        self._model, self._flat = model, {model.layer_name(index): (index, array) for index, array in flat.items()}

    def __getitem__(self, name: str) -> dict[str, Array]:
        index, flat = self._flat[name]
        return self._model.layers[index].unpack(flat)

    def __iter__(self) -> Iterator[str]:
        return iter(self._flat)

    def __len__(self) -> int:
        return len(self._flat)


@dataclass
class Result:
    """The result of `train`.

    Attributes
    ----------
    layers : mapping
        This rank's layers: name -> parameter name -> array (possibly a view of the trained memory).
    sha256 : str
        Digest of all weights of all ranks, the same whatever the number of ranks.
    rows : list of dict
        Losses and scores of every step and test, with the columns of `ringtmp.run.history` (rank 0; empty elsewhere).
    ranks : list of dict
        Per rank: layers, parameters, nanoseconds by part of the wall time (`parts`), seconds by part given the cores
        of its host (`given_cores`; None: unknown), peak memory in bytes (rank 0).
    state : str
        `finished` or `stopped`.
    signal : int
        The signal that stopped the run, or 0.
    step : int
        Updates made since the run's first step.
    folder : str or None
        The run folder.
    saved : bool
        Whether its checkpoints hold the weights of the last step.
    leavers : list of int
        Ranks that received SIGUSR1 and left, if not all did.
    """

    layers: Mapping[str, dict[str, Array]]
    sha256: str
    rows: list[dict[str, Any]]
    ranks: list[dict[str, Any]]
    state: str
    signal: int
    step: int
    folder: str | None
    saved: bool
    leavers: list[int]
    _comm: "Intracomm"

    @property
    def exit_status(self) -> int:
        """Status with which a command ends: 0, 128 + the signal that stopped it, or 1 if weights were not saved."""
        if self.signal:
            return 128 + self.signal
        return 0 if self.saved else 1

    @property
    def history(self) -> "DataFrame":
        """Losses and scores as a data frame (rank 0)."""
        from pandas import DataFrame

        return DataFrame(self.rows, columns=list(COLUMNS))

    def weights(self) -> dict[str, dict[str, Array]]:
        """All layers, on rank 0 (elsewhere empty). Collective over the communicator that trained."""
        parts = self._comm.gather(dict(self.layers))
        return {name: arrays for part in parts for name, arrays in part.items()} if parts else {}
