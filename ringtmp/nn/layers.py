"""Layers: parameters, start values, and forward, I and W as separate calls.

A layer holds no arrays. Its parameters live in one flat array (so that one fused kernel updates them), its
activations in the buffers of a slot (so that nothing is allocated while training). `views` cuts the flat array into
named parameters.

    forward                 y = layer(x)
    backward_input   (I)    dx from dy; leaves in `dy` what W needs
    backward_weight  (W)    gradients += what this micro-batch adds
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

import kernels
from ringtmp.errors import UserError

Array = NDArray[Any]

# Gain of the activation, for start values that keep the activations' variance (He et al. 2015, Glorot & Bengio 2010).
_GAIN = {"linear": 1.0, "relu": math.sqrt(2), "gelu": math.sqrt(2), "tanh": 5 / 3, "sigmoid": 1.0}


@dataclass(frozen=True)
class Dense:
    """y = activation(x @ weight + bias).

    Parameters
    ----------
    inputs, outputs : int
        Features of x and y.
    activation : str
        One of `kernels.ACTIVATIONS`.
    bias : bool
        Whether there is one.
    """

    inputs: int
    outputs: int
    activation: str = "linear"
    bias: bool = True

    kind = "dense"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter, in the order in which they lie in the flat array."""
        return {"weight": (self.inputs, self.outputs), "bias": (self.outputs if self.bias else 0,)}

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def flops(self, rows: int) -> int:
        """Floating-point operations of F, I and W together for `rows` samples."""
        return 6 * rows * self.inputs * self.outputs

    def saved_features(self) -> int:
        """Numbers per sample that F keeps for I besides y: the slope of the activation, where y does not give it."""
        return self.outputs if self.activation == "gelu" else 0

    def initialise(self, flat: Array, seed: int, index: int) -> None:
        """Fill `flat` from a counter-based generator keyed by (seed, layer index): never by rank or by shape."""
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))
        parameters = self.views(flat)
        deviation = _GAIN[self.activation] / math.sqrt(self.inputs)
        parameters["weight"][:] = rng.standard_normal(self.shapes["weight"]) * deviation
        parameters["bias"][:] = 0

    def views(self, flat: Array) -> dict[str, Array]:
        """Named views into a flat array of `size` numbers."""
        views, start = {}, 0
        for name, shape in self.shapes.items():
            views[name] = flat[start : start + math.prod(shape)].reshape(shape)
            start += math.prod(shape)
        return views

    def forward(self, parameters: dict[str, Array], x: Array, y: Array, saved: Array) -> None:
        """F: x [rows, inputs] -> y [rows, outputs]; `saved` [rows, saved_features]."""
        code = kernels.ACTIVATIONS[self.activation]
        kernels.dense_forward(x, parameters["weight"], parameters["bias"], y, saved, code)

    def backward_input(self, parameters: dict[str, Array], y: Array, saved: Array, dy: Array, dx: Array) -> None:
        """I: dy [rows, outputs] -> dx [rows, inputs] (size 0: not wanted); dy is overwritten for W."""
        code = kernels.ACTIVATIONS[self.activation]
        kernels.dense_backward_input(y, saved, dy, parameters["weight"], dx, code)

    def backward_weight(self, gradients: dict[str, Array], x: Array, dy: Array, beta: float) -> None:
        """W: gradients = beta * gradients + this micro-batch's; `dy` as I left it."""
        kernels.dense_backward_weight(x, dy, gradients["weight"], gradients["bias"], beta)

    def to_dict(self) -> dict[str, Any]:
        """The layer as a plain table, as stored in checkpoints."""
        return {"type": self.kind, **{field.name: getattr(self, field.name) for field in fields(self)}}


def aligned(count: int, dtype: DTypeLike) -> Array:
    """A zeroed flat array of `count` numbers that starts on a cache line (64 bytes)."""
    item = np.dtype(dtype).itemsize
    room = np.zeros(count * item + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + count * item].view(dtype)


def dense_from_table(table: dict[str, Any], inputs: int, where: str) -> Dense:
    """A `Dense` from a table such as ``{type = "dense", units = 256, activation = "relu"}``."""
    known = {"type", "units", "outputs", "inputs", "activation", "bias"}
    for key in table:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}; known: {', '.join(sorted(known))}")
    if table.get("type") != "dense":
        raise UserError(f"{where}: type must be 'dense', got {table.get('type')!r}")
    units = table.get("units", table.get("outputs"))
    if not isinstance(units, int) or isinstance(units, bool) or units < 1:
        raise UserError(f"{where}: units must be a whole number above 0, got {units!r}")
    if table.get("inputs", inputs) != inputs:
        raise UserError(f"{where}: inputs is {table['inputs']!r} but the layer before gives {inputs}")
    activation, bias = table.get("activation", "linear"), table.get("bias", True)
    if not isinstance(activation, str) or activation not in kernels.ACTIVATIONS:
        raise UserError(f"{where}: activation must be one of {', '.join(kernels.ACTIVATIONS)}, got {activation!r}")
    if not isinstance(bias, bool):
        raise UserError(f"{where}: bias must be true or false, got {bias!r}")
    return Dense(inputs, units, activation, bias)
