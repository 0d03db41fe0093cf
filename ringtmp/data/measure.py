"""Measure a data source: check its numbers, and compute the normalisation and the digest of its samples."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringtmp.data.registry import Array, Source
from ringtmp.errors import UserError

_BLOCK = 1 << 26  # bytes of a block in the pass over all data


class Measure:
    """Checks every number in one pass over the data, and computes mean and deviation of the training rows.

    Parameters
    ----------
    source : Source
        The data.
    train : int64 array or None
        Rows of `source.x` that are training samples; None: all.
    classes : bool
        Whether targets are classes.

    Raises
    ------
    UserError
        A number is not finite, or a label is negative.
    """

    def __init__(self, source: Source, train: NDArray[np.int64] | None, classes: bool) -> None:
        self.name, self.is_classes = source.name, classes
        self.features = int(np.prod(source.x.shape[1:], initial=1))
        self.count = 0
        self.mean, self.squares = np.zeros(self.features), np.zeros(self.features)
        width = 1 if classes else int(np.prod(source.y.shape[1:], initial=1))
        self.y_mean, self.y_squares = np.zeros(width), np.zeros(width)
        self.highest = -1
        self._hashes = hashlib.sha256(), hashlib.sha256()
        mask = np.ones(len(source.x), bool)
        if train is not None:
            mask[:] = False
            mask[train] = True
        self.check(source.x, source.y, mask)

    def check(self, x: Any, y: Any, training: NDArray[np.bool_] | None) -> None:
        """Check every row.

        Parameters
        ----------
        x, y : array or HDF5 data set, [n, ...]
            Samples and targets.
        training : bool array [n] or None
            Rows that count for mean and deviation; None: none.

        Raises
        ------
        UserError
            A number is not finite, a label is negative, or the data cannot be read.
        """
        for start, rows, targets in self._blocks(x, y):
            for name, block in (("x", rows), ("y", targets)):
                if np.dtype(block.dtype).kind == "f" and not np.isfinite(block).all():
                    bad = start + int(np.argmin(np.isfinite(block).reshape(len(block), -1).all(axis=1)))
                    raise UserError(
                        f"{self.name}: {name} has NaN or infinity, first in row {bad}; expected finite numbers"
                    )
            for hash_, block in zip(self._hashes, (rows, targets), strict=True):
                hash_.update(np.ascontiguousarray(block).data)
            if self.is_classes:
                if targets.min() < 0:
                    raise UserError(f"{self.name}: y has the label {targets.min()}; expected labels from 0")
                self.highest = max(self.highest, int(targets.max()))
            if training is not None:
                chosen = training[start : start + len(rows)]
                self._add(rows[chosen], targets[chosen])

    def _blocks(self, x: Any, y: Any) -> Iterator[tuple[int, Array, Array]]:
        step = max(1, _BLOCK // max(1, self.features * 8))
        for start in range(0, len(x), step):
            try:
                yield start, np.asarray(x[start : start + step]), np.asarray(y[start : start + step])
            except OSError as error:
                raise UserError(f"{self.name}: cannot be read to its end: {error}") from None

    def _add(self, x: Array, y: Array) -> None:
        """Combine the moments of a block with those before it (Chan, Golub & LeVeque 1979)."""
        n = len(x)
        if not n:
            return
        total = self.count + n
        pairs = (
            [(self.mean, self.squares, x)]
            if self.is_classes
            else [(self.mean, self.squares, x), (self.y_mean, self.y_squares, y)]
        )
        for mean, squares, block in pairs:
            wide = block.reshape(n, -1).astype(np.float64)
            here = wide.mean(axis=0)
            delta = here - mean
            squares += ((wide - here) ** 2).sum(axis=0) + delta**2 * self.count * n / total
            mean += delta * n / total
        self.count = total

    def stated(self, kind: str) -> dict[str, Any]:
        """The normalisation of kind `kind` (feature, global or none) that follows from these moments."""
        facts: dict[str, Any] = {"kind": kind}
        if kind == "feature":
            facts |= {"mean": self.mean.tolist(), "std": _deviation(self.squares / self.count).tolist()}
        elif kind == "global":
            mean = self.mean.mean()
            variance = self.squares.mean() / self.count + ((self.mean - mean) ** 2).mean()
            facts |= {"mean": float(mean), "std": float(_deviation(np.asarray(variance)))}
        if not self.is_classes:
            facts |= {
                "target_mean": self.y_mean.tolist(),
                "target_std": _deviation(self.y_squares / self.count).tolist(),
            }
        return facts

    def digest(self) -> str:
        """SHA-256 of all numbers."""
        return hashlib.sha256(b"".join(each.digest() for each in self._hashes)).hexdigest()

    def classes(self) -> int:
        """Number of classes: the highest label and all below it."""
        return self.highest + 1


def _deviation(variance: Array) -> Array:
    """Root of the variance; 1 for a feature that is constant, which then becomes 0 and not NaN."""
    return np.where(variance > 0, np.sqrt(variance), 1.0)
