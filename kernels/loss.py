"""How a loss is declared: by a kernel that gives the loss and its gradient.

The gradient replaces the outputs, so no second copy of them exists. It is always written to the same array, never to
another: whether two arrays may be one decides which machine code a loop takes, and with it the order of its sums.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from ringtmp.kernels.compilation import kernel
from ringtmp.kernels.registry import LOSSES, Loss


def loss(
    name: str, target: Literal["classes", "values"], probabilities: str | None = None, gives_r2: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a loss by its kernel, which Numba compiles; `Loss` explains the kernel's arguments and results.

    Parameters
    ----------
    name : str
        Value of `--loss`; no other loss's.
    target : str
        ``classes`` or ``values``.
    probabilities : str, optional
        ONNX operator that turns the outputs into probabilities.
    gives_r2 : bool
        Whether the loss is a mean of squared errors, so that R2 follows from it.

    Returns
    -------
    callable
        The decorator; it returns the compiled kernel.
    """
    labels: Any = np.zeros(1, np.int64) if target == "classes" else (1, 1)

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled = kernel("base", (1, 1), labels, 1.0)(function)
        LOSSES.add(name, Loss(name, target, probabilities, gives_r2, compiled), function.__module__)
        return compiled

    return declare
