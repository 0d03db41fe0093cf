"""Comparing samples of measurements: by turns, medians, quartiles, rows of a benchmark."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np


def alternate(ours: Callable[[], float], peer: Callable[[], float], pairs: int) -> tuple[list[float], list[float]]:
    """Measure two contestants by turns, in alternating order.

    Parameters
    ----------
    ours, peer : callable
        Called without arguments; return a value.
    pairs : int
        Number of calls of each.

    Returns
    -------
    list of float, list of float
        Values of `ours` and of `peer`, in pairs.
    """
    values: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            values[which].append((ours, peer)[which]())
    return values


def compared(
    case: str, ours: list[float], peer: list[float], unit: str, aim: float | None, less_is_better: bool = False
) -> dict[str, Any]:
    """A row of a benchmark: two medians, their ratio (above 1: `ours` is better), and quartiles of the pairs' ratios.

    Parameters
    ----------
    case : str
        Name of the row.
    ours, peer : list of float
        Values measured in pairs, from `alternate`.
    unit : str
        Unit of both.
    aim : float or None
        Ratio to reach.
    less_is_better : bool
        Whether the smaller value wins, as with seconds.
    """
    mine, theirs = np.asarray(ours), np.asarray(peer)
    ratios = theirs / mine if less_is_better else mine / theirs
    medians = float(np.median(mine)), float(np.median(theirs))
    ratio = medians[1] / medians[0] if less_is_better else medians[0] / medians[1]
    low, high = np.percentile(ratios, [25, 75])
    return {
        "case": case,
        "ours": medians[0],
        "peer": medians[1],
        "unit": unit,
        "ratio": ratio,
        "low": float(low),
        "high": float(high),
        "aim": aim,
    }


def measured(case: str, values: list[float], unit: str, aim: float | None, less_is_better: bool) -> dict[str, Any]:
    """A row of a benchmark without a peer: `ratio` is to the aim, `low` and `high` are quartiles of the value itself.

    Parameters
    ----------
    case : str
        Name of the row.
    values : list of float
        Measured values.
    unit : str
        Unit of the values.
    aim : float or None
        Value to reach.
    less_is_better : bool
        Whether the smaller value wins, as with seconds.
    """
    median = float(np.median(values))
    low, high = np.percentile(values, [25, 75])
    ratio = None if aim is None else aim / median if less_is_better else median / aim
    return {
        "case": case,
        "ours": median,
        "peer": None,
        "unit": unit,
        "ratio": ratio,
        "low": float(low),
        "high": float(high),
        "aim": aim,
    }


def quartiles(values: Sequence[float], interpolate: bool = False) -> list[float]:
    """Median and quartiles: [median, lower, upper]; nan for an empty sequence.

    Parameters
    ----------
    values : sequence of float
        Some may be infinite, without `interpolate`.
    interpolate : bool
        Whether a quartile may lie between two values; by default each is one of them.
    """
    if not len(values):
        return [float("nan")] * 3
    method: Literal["linear", "nearest"] = "linear" if interpolate else "nearest"
    return [float(np.percentile(values, q, method=method)) for q in (50, 25, 75)]
