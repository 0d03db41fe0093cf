"""A SwiGLU layer (Shazeer 2020), as somebody outside the package would add it: this file and its kernels."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from swiglu_kernels import swiglu_backward_input, swiglu_backward_weight, swiglu_forward

from ringtmp.nn.layer import Layer, draw_normal


@dataclass(frozen=True)
class SwiGLU(Layer):
    """y = silu(x gate) (x up) on the last axis of the shape."""

    units: int

    kind: ClassVar[str] = "swiglu"
    family: ClassVar[str] = "swiglu"

    @classmethod
    def from_table(cls, table, shape):
        return cls(shape, table.whole("units"))

    @property
    def out_shape(self):
        return (*self.shape[:-1], self.units)

    @property
    def shapes(self):
        return dict.fromkeys(("gate", "up"), (self.shape[-1], self.units))

    def flops(self, rows):
        return 12 * rows * self.inputs * self.units

    def saved_numbers(self):
        return 2 * self.outputs

    def draw(self, flat, rng):
        draw_normal(flat, 1 / math.sqrt(self.shape[-1]), rng)

    def bind(self, buffers):
        rows = len(buffers.x) * math.prod(self.shape[:-1])
        a, b = buffers.saved.reshape(2, rows, self.units)
        dx = buffers.dx.reshape(rows, -1) if buffers.dx.size else np.empty((0, self.shape[-1]), buffers.x.dtype)
        x, y, dy = (each.reshape(rows, -1) for each in (buffers.x, buffers.y, buffers.dy))
        buffers.inner = x, y, dy, dx, a, b

    def forward(self, p, buffers, context):
        x, y, _, _, a, b = buffers.inner
        swiglu_forward(x, p["gate"], p["up"], y, a, b)

    def backward_input(self, p, buffers, context):
        _, _, dy, dx, a, b = buffers.inner
        swiglu_backward_input(p["gate"], p["up"], dy, a, b, dx)

    def backward_weight(self, g, all_buffers, first, scratch):
        for buffers in all_buffers:
            x, _, _, _, a, b = buffers.inner
            swiglu_backward_weight(x, a, b, g["gate"], g["up"], not first)
            first = False

    def onnx(self, graph, p, x):
        gate = graph.activate(graph.add("MatMul", x, graph.constant(p["gate"])), "silu")
        return graph.add("Mul", gate, graph.add("MatMul", x, graph.constant(p["up"])))
