"""An ONNX graph under construction: layers add their own nodes to it (`Layer.onnx`)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

_PLAIN = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}


class Graph:
    """Nodes and constants so far; calls that add a node return the name of its result.

    Parameters
    ----------
    dtype : numpy dtype
        Dtype of all numbers but tokens.
    """

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, array: Any) -> str:
        """Add the array `array` as a constant; returns its name."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def number(self, value: float) -> str:
        """Add the number `value` as a scalar constant of the graph's dtype; returns its name."""
        return self.constant(np.asarray(value, self.dtype))

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node.

        Parameters
        ----------
        kind : str
            ONNX operator.
        *inputs : str
            Names of its inputs.
        **attributes
            Attributes of the operator.
        """
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """Give each sample of `x` the shape `shape`."""
        return self.add("Reshape", x, self.constant(np.array([-1, *shape], np.int64)))

    def part(self, x: str, first: int, last: int) -> str:
        """Features `first` to `last` - 1 of each place of `x`."""
        ends = (self.constant(np.array([end], np.int64)) for end in (first, last, -1))
        return self.add("Slice", x, *ends)

    def among_channels(self, x: str, make: Callable[[str], str]) -> str:
        """Add nodes that need [channels, height, width], between two transpositions.

        Parameters
        ----------
        x : str
            Name of the input, [height, width, channels].
        make : callable
            Called with the name of the transposed input; returns the name of its result.
        """
        return self.add("Transpose", make(self.add("Transpose", x, perm=[0, 3, 1, 2])), perm=[0, 2, 3, 1])

    def activate(self, x: str, function: str) -> str:
        """Apply the activation called `function` (`ringtmp.kernels.activations`) to `x`."""
        if function in _PLAIN:
            return self.add(_PLAIN[function], x)
        if function == "silu":
            return self.add("Mul", x, self.add("Sigmoid", x))
        if function == "gelu":
            erf = self.add("Erf", self.add("Mul", x, self.number(math.sqrt(0.5))))
            half = self.add("Mul", x, self.number(0.5))
            return self.add("Mul", half, self.add("Add", erf, self.number(1.0)))
        return x
