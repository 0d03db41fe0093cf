"""Data sets with names: those that scikit-learn brings along."""

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ringtmp.data.registry import Request, Source, data_format


def _bundled_file(name: str) -> Path | None:
    """A data file of scikit-learn, found without importing it: `sklearn.datasets` takes 1.7 s to import."""
    spec = importlib.util.find_spec("sklearn")
    path = Path(spec.origin).parent / "datasets" / "data" / name if spec and spec.origin else None
    return path if path and path.is_file() else None


@cache
def _numbers(path: Path) -> NDArray[np.float64]:
    """Read the table in a file that never changes, once in a process that trains often."""
    table = np.loadtxt(path, delimiter=",")
    table.flags.writeable = False
    return table


@data_format("digits", name="digits")
def open_digits(request: Request) -> Source:
    """Open the digits: 1,797 images of 8 x 8 pixels, 10 classes."""
    path = _bundled_file("digits.csv.gz")
    if path:
        table = _numbers(path)
        x, y = table[:, :-1], table[:, -1].astype(np.int64)
    else:  # another layout than that of scikit-learn 1.5 to 1.9
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
    return Source("digits", x, y, images=True)


@data_format("breast-cancer", name="breast-cancer")
def open_breast_cancer(request: Request) -> Source:
    """Open the breast-cancer set: 569 samples of 30 features, 2 classes."""
    path = _bundled_file("breast_cancer.csv")
    if path:
        table = np.loadtxt(path, delimiter=",", skiprows=1)
        x, y = table[:, :-1], table[:, -1].astype(np.int64)
    else:
        from sklearn.datasets import load_breast_cancer

        x, y = load_breast_cancer(return_X_y=True)
    return Source("breast-cancer", x, y)


@data_format("diabetes", name="diabetes")
def open_diabetes(request: Request) -> Source:
    """Open the diabetes set: 442 samples of 10 features, one value each."""
    x_path, y_path = _bundled_file("diabetes_data_raw.csv.gz"), _bundled_file("diabetes_target.csv.gz")
    if x_path and y_path:
        x, y = np.loadtxt(x_path), np.loadtxt(y_path)
    else:
        from sklearn.datasets import load_diabetes

        x, y = load_diabetes(return_X_y=True, scaled=False)
    return Source("diabetes", x, y)
