"""A trained network, loaded from a checkpoint: predictions for new samples, and scores.

    from ringtmp.run.inference import TrainedNetwork
    net = TrainedNetwork("runs/first")
    net.predict(x)            # samples in the units of the training data, before any normalisation
    net.evaluate()            # on the test samples of the run

Layers are read and applied one after the other, so that a network may be larger than this machine's memory.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ringtmp.checkpoint import format as checkpoint
from ringtmp.checkpoint.loading import newest_checkpoint
from ringtmp.data.dataset import DataInfo, DataSet, Scale, open_data
from ringtmp.errors import UserError
from ringtmp.kernels.compilation import prepare_kernels
from ringtmp.nn.layer import Array
from ringtmp.nn.model import Model, build_model
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.stage import Stage
from ringtmp.storage.run_folder import open_run_folder

_ROWS = 256  # samples to which a layer is applied at a time
_ROOM = 1 << 28  # most bytes of inputs and outputs of a layer, for the samples that are taken together


@dataclass(frozen=True)
class Score:
    """Quality of a network on some samples.

    Attributes
    ----------
    samples : int
        Number of samples.
    loss : float
        Mean over the predictions.
    score : float
        Share of correct predictions; for values R2, the share of the targets' variance that the network explains.
    """

    samples: int
    loss: float
    score: float


class TrainedNetwork:
    """A network with the weights of a checkpoint.

    Parameters
    ----------
    path : str
        A run folder (its newest intact checkpoint), or a folder in its `checkpoints`.

    Attributes
    ----------
    info : DataInfo
        Facts on the data that it was trained on.
    model : Model
        The network.
    dtype : numpy dtype
        Dtype of its weights.
    config : dict
        Configuration of the run.
    step : int
        Updates made to the weights.

    Raises
    ------
    UserError
        No checkpoint can be used.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._root, self._marker = _find(path)
        facts = self._marker["facts"]
        self.config: dict[str, Any] = facts["config"]
        self.step: int = self._marker["step"]
        self.info = DataInfo.from_json(facts["data"])
        info = self.info
        self.model: Model = build_model(
            facts["model"]["layers"],
            "auto",
            info.sample_shape,
            info.target,
            info.outputs,
            info.labels,
            bool(info.alphabet),
        )
        self.dtype = np.dtype(self.config["dtype"])
        prepare_kernels(self.dtype, self.model.families)

    @property
    def is_classes(self) -> bool:
        """Whether it predicts classes; otherwise it predicts values."""
        return self.model.loss.of_classes

    def layers(self) -> Iterator[tuple[str, dict[str, Array]]]:
        """Name and parameters (arrays by name, in their own shapes) of each layer, one layer at a time."""
        for record in self._records(0, len(self.model.layers)):
            yield record.name, record.parameters

    def _records(self, first: int, last: int) -> Iterator[checkpoint.LayerRecord]:
        names = [self.model.layer_name(index) for index in range(first, last)]
        return checkpoint.read_layers(self._root, self._marker, names)

    def stage(self, first: int, last: int, rows: int) -> Stage:
        """Make a stage of layers `first` to `last` - 1, for forwards of up to `rows` samples."""
        stage = Stage(self.model, first, last, self.dtype, Optimizer("sgd"), rows, 1)
        for state, record in zip(stage.states, self._records(first, last), strict=True):
            state.layer.pack(state.flat, record.parameters)
        return stage

    def at_once(self) -> int:
        """Number of samples to take together: a multiple of `_ROWS`."""
        widest = max(layer.inputs + layer.outputs for layer in self.model.layers)
        return max(1, _ROOM // (widest * self.dtype.itemsize) // _ROWS) * _ROWS

    def outputs(self, x: Array) -> Array:
        """Last layer's outputs [n, outputs], logits or normalised values, of normalised samples `x` [n, features]."""
        parts = [self._through(x[at : at + self.at_once()]) for at in range(0, len(x), self.at_once())]
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def _through(self, x: Array) -> Array:
        for index, layer in enumerate(self.model.layers):
            stage = self.stage(index, index + 1, min(_ROWS, len(x)))
            y = np.empty((len(x), layer.outputs), self.dtype)
            for at in range(0, len(x), _ROWS):
                rows = x[at : at + _ROWS]
                work = stage.work(0, len(rows))
                work.x[...] = rows
                stage.forward(work)
                y[at : at + _ROWS] = work.y
            x = y
        return x

    def predict(self, x: Array) -> Array:
        """Predict.

        Parameters
        ----------
        x : array [n, ...]
            Samples in the units of the training data, before any normalisation.

        Returns
        -------
        array
            For classes: probabilities [n, classes], for a text [n, places, characters]. For values: [n, outputs], in
            the units of the training targets.

        Raises
        ------
        UserError
            The samples do not have the shape of those that the network was trained on.
        """
        if tuple(x.shape[1:]) != self.info.sample_shape and math.prod(x.shape[1:]) != math.prod(self.info.sample_shape):
            raise UserError(f"x: samples have shape {tuple(x.shape[1:])}; expected {self.info.sample_shape}")
        scale = Scale(self.info.normalisation, np.dtype(np.int64) if self.model.takes_tokens else self.dtype)
        samples = scale.inputs(np.asarray(x).reshape(len(x), -1))
        if self.model.takes_tokens and samples.size and not 0 <= samples.min() <= samples.max() < self.info.outputs:
            raise UserError(
                f"x: holds tokens from {samples.min()} to {samples.max()}; expected 0 to {self.info.outputs - 1}"
            )
        y = self.outputs(samples)
        if not self.is_classes:
            return scale.values(y)
        logits = y.reshape(*y.shape[:1], *self.model.layers[-1].out_shape).astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=-1, keepdims=True)
        return logits.astype(self.dtype)

    def data(self, spec: str = "") -> DataSet:
        """Open data, with the run's normalisation and its share of samples held out for tests.

        Parameters
        ----------
        spec : str
            The setting `data`, of data of the same kind; empty: the run's own data.

        Raises
        ------
        UserError
            The data cannot be read, are of another kind, or (`spec` empty) have changed since the run.
        """
        config = self.config
        if not spec and config["data"] == "arrays":
            raise UserError(f"data: {self.path} was trained on arrays from Python; expected --data")
        (context,) = self.info.sample_shape if self.info.alphabet else (0,)
        return open_data(
            spec or config["data"],
            dtype=self.dtype,
            test_fraction=config["test_fraction"],
            context=context,
            like=self.info,
            same=not spec,
        )

    def evaluate(self, data: DataSet | None = None, split: str = "test") -> Score:
        """Compute loss and score on samples.

        Parameters
        ----------
        data : DataSet, optional
            By default the run's own data.
        split : {"test", "train"}
            Split of the data.

        Raises
        ------
        UserError
            The run's own data cannot be read, or have changed.
        """
        data = data or self.data()
        n = data.info.n_train if split == "train" else data.info.n_test
        features = math.prod(self.info.sample_shape)
        x_type, y_type = (
            np.dtype(np.int64) if flag else self.dtype for flag in (self.model.takes_tokens, self.is_classes)
        )
        loss, right, total, squares = 0.0, 0.0, np.zeros(self.model.labels), np.zeros(self.model.labels)
        for first in range(0, n, self.at_once()):
            chosen = np.arange(first, min(n, first + self.at_once()))
            x, y = np.empty((len(chosen), features), x_type), np.empty((len(chosen), self.model.labels), y_type)
            data.read(split, chosen, x, y)
            made = self.outputs(x)
            if self.is_classes:
                here, correct = self.model.loss.evaluate(made.reshape(y.size, -1), y.reshape(-1), 0.0)
                right += correct
            else:
                here, _ = self.model.loss.evaluate(made, y, 0.0)
                total += y.sum(axis=0, dtype=np.float64)
                squares += (y.astype(np.float64) ** 2).sum(axis=0)
            loss += here
        predictions = n * self.model.scored
        spread = float(np.mean(squares - total**2 / n)) if self.model.loss.gives_r2 else 0.0
        score = right / predictions if self.is_classes else 1 - loss / spread if spread else math.nan
        return Score(n, loss / predictions, score)


def _find(path: str) -> tuple[Path, dict[str, Any]]:
    """The folder of the checkpoints, and the marker of the checkpoint that `path` names."""
    place = Path(path)
    if place.name.startswith("step-") and place.is_dir():
        try:
            marker = checkpoint.read_marker(place.parent, int(place.name[5:]))
            checkpoint.verify(place.parent, marker)
            return place.parent, marker
        except (checkpoint.DamagedError, ValueError) as error:
            raise UserError(f"{path}: cannot be used: {error}") from None
    try:
        folder = open_run_folder(path, "runs")
        return folder.checkpoints, newest_checkpoint(folder)[0]
    except UserError as error:
        raise UserError(f"checkpoint: {str(error).removeprefix('resume: ')}") from None
