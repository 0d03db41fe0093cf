"""Samples in the order of (seed, epoch), as the rank that holds the data reads them for training and tests."""

import math

import numpy as np

from ringtmp.data.dataset import Array, DataInfo, DataSet, epoch_order

_ROWS = 256  # targets that `Sampler.spread` reads at a time


class Sampler:
    """Reads the samples of training batches and of tests.

    The order depends on the seed and the epoch only, never on the number of ranks.

    Parameters
    ----------
    data : DataSet
        The open data set.
    seed : int
        Seed of the order, from 0.
    batch_size : int
        Samples of a training step. Each epoch leaves out the samples that do not fill a batch.
    """

    def __init__(self, data: DataSet, seed: int, batch_size: int) -> None:
        self.data, self.seed, self.batch_size = data, seed, batch_size
        self.steps_per_epoch = data.info.n_train // batch_size
        self._epoch, self._order = -1, np.empty(0, np.int64)
        self._spread: float | None = None

    @property
    def info(self) -> DataInfo:
        """Facts on the data set."""
        return self.data.info

    def train(self, step: int, first: int, x: Array, labels: Array) -> None:
        """Read a part of a training batch.

        Parameters
        ----------
        step : int
            Step of the run, from 0.
        first : int
            Number of the first sample within the batch, from 0.
        x, labels : array
            Receive the samples and their targets (`DataSet.read`). The number of rows is that of `x`.
        """
        # Draw the order of an epoch when its first batch is read.
        epoch, batch = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self.seed, epoch, self.data.info.n_train)

        # Read the samples that stand at these places of the order.
        first += batch * self.batch_size
        self.data.read("train", self._order[first : first + len(x)], x, labels)

    def test(self, first: int, x: Array, labels: Array) -> None:
        """Read test samples from number `first` on into `x` and `labels` (`DataSet.read` explains these)."""
        self.data.read("test", np.arange(first, first + len(x)), x, labels)

    def spread(self) -> float:
        """Squared error of guessing the mean of the test targets, summed over the test samples; 0 for classes."""
        if self._spread is None:
            self._spread = 0.0
            info = self.data.info
            if info.target == "values":
                every = np.empty((info.n_test, info.outputs), self.data.dtype)
                for first in range(0, len(every), _ROWS):
                    rows = every[first : first + _ROWS]
                    self.test(first, np.empty((len(rows), math.prod(info.sample_shape)), self.data.dtype), rows)
                wide = every.astype(np.float64)
                self._spread = float(np.mean(((wide - wide.mean(0)) ** 2).sum(0)))
        return self._spread
