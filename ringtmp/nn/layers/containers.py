"""Layers made of layers, and those without parameters: a block is one layer of the chain, so a model stays a chain."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ringtmp.kernels.activations import ACTIVATIONS, SLOPED, activate, deactivate
from ringtmp.kernels.elementwise import add_to, dropout
from ringtmp.nn.layer import Array, Layer, LayerBuffers, Parameters, StepContext
from ringtmp.nn.layer_spec import Table

if TYPE_CHECKING:
    from ringtmp.nn.onnx_graph import Graph


@dataclass(frozen=True)
class Block(Layer):
    """Layers one after the other. Parameters have the number of their layer before their name: `0.weight`.

    Parameters
    ----------
    layers : tuple of Layer
        At least one.
    """

    layers: tuple[Layer, ...]

    kind: ClassVar[str] = "block"
    takes_shape: ClassVar[bool] = True

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.layers[-1].out_shape

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {f"{n}.{name}": shape for n, layer in enumerate(self.layers) for name, shape in layer.shapes.items()}

    @property
    def needs_output(self) -> bool:
        return self.layers[-1].needs_output

    def families(self) -> set[str]:
        return set().union(*(layer.families() for layer in self.layers))

    def flops(self, rows: int) -> int:
        return sum(layer.flops(rows) for layer in self.layers)

    def traffic(self, rows: int, itemsize: int) -> int:
        return sum(layer.traffic(rows, itemsize) for layer in self.layers)

    def saved_numbers(self) -> int:
        between = sum(2 * layer.outputs for layer in self.layers[:-1] if not layer.aliased)
        return between + sum(layer.saved_numbers() for layer in self.layers)

    def scratch_numbers(self, rows: int) -> int:
        return max(layer.scratch_numbers(rows) for layer in self.layers)

    def derived_numbers(self) -> int:
        return sum(layer.derived_numbers() for layer in self.layers)

    def draw(self, flat: Array, rng: np.random.Generator) -> None:
        for layer, part in self._parts(flat):
            layer.draw(part, rng)

    def _parts(self, flat: Array) -> list[tuple[Layer, Array]]:
        parts, start = [], 0
        for layer in self.layers:
            parts.append((layer, flat[start : start + layer.count]))
            start += layer.count
        return parts

    def views(self, flat: Array, derived: Array | None = None) -> Parameters:
        views: Parameters = {}
        start = 0
        for n, (layer, part) in enumerate(self._parts(flat)):
            own = None if derived is None else derived[start : start + layer.derived_numbers()]
            views[str(n)] = layer.views(part, own)
            start += layer.derived_numbers()
        return views

    def unpack(self, flat: Array) -> dict[str, Array]:
        named: dict[str, Array] = {}
        for n, (layer, part) in enumerate(self._parts(flat)):
            named |= {f"{n}.{name}": array for name, array in layer.unpack(part).items()}
        return named

    def pack(self, flat: Array, arrays: dict[str, Array]) -> None:
        for n, (layer, part) in enumerate(self._parts(flat)):
            prefix = f"{n}."
            layer.pack(part, {key.removeprefix(prefix): a for key, a in arrays.items() if key.startswith(prefix)})

    def bind(self, buffers: LayerBuffers) -> None:
        self._bind(buffers, buffers.x, buffers.y, buffers.dy, buffers.dx, 0)

    def _bind(self, buffers: LayerBuffers, x: Array, y: Array, dy: Array, dx: Array, start: int) -> None:
        """Buffers of the inner layers between the ends x, y, dy, dx; the first `start` numbers of `saved` are taken."""
        rows = len(x)

        def take(numbers: int) -> Array:
            nonlocal start
            start += rows * numbers
            return buffers.saved[start - rows * numbers : start]

        buffers.inner = []
        for layer in self.layers[:-1]:
            if layer.aliased:
                out, grad = x, dx
            else:
                out, grad = (take(layer.outputs).reshape(rows, layer.outputs) for _ in range(2))
            buffers.inner.append(LayerBuffers(x, out, grad, dx, take(layer.saved_numbers()), buffers.scratch))
            x, dx = out, grad
        buffers.inner.append(LayerBuffers(x, y, dy, dx, take(self.layers[-1].saved_numbers()), buffers.scratch))
        for layer, inner in zip(self.layers, buffers.inner, strict=True):
            layer.bind(inner)

    def refresh_cache(self, p: Parameters) -> None:
        for n, layer in enumerate(self.layers):
            layer.refresh_cache(p[str(n)])

    def forward(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        for n, (layer, inner) in enumerate(zip(self.layers, buffers.inner, strict=True)):
            layer.forward(p[str(n)], inner, context)

    def backward_input(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        for n in reversed(range(len(self.layers))):
            self.layers[n].backward_input(p[str(n)], buffers.inner[n], context)

    def backward_weight(self, g: Parameters, all_buffers: Sequence[LayerBuffers], first: bool, scratch: Array) -> None:
        for n, layer in enumerate(self.layers):
            layer.backward_weight(g[str(n)], [buffers.inner[n] for buffers in all_buffers], first, scratch)

    def to_table(self) -> dict[str, Any]:
        return {"type": self.kind, "shape": list(self.shape), "layers": [layer.to_table() for layer in self.layers]}

    @classmethod
    def from_table(cls, table: Table, shape: tuple[int, ...]) -> Layer:
        return cls(shape, table.layers(shape))

    def onnx(self, graph: "Graph", p: dict[str, Array], x: str) -> str:
        for n, inner in enumerate(self.layers):
            prefix = f"{n}."
            own = {key.removeprefix(prefix): array for key, array in p.items() if key.startswith(prefix)}
            x = inner.onnx(graph, own, x)
        return x


@dataclass(frozen=True)
class Residual(Block):
    """y = x + layers(x); the output of the layers has the shape of x."""

    kind: ClassVar[str] = "residual"

    @property
    def needs_output(self) -> bool:
        """The last layer's own output is lost in the sum, so a layer whose I reads it may not come last."""
        return False

    def saved_numbers(self) -> int:
        return super().saved_numbers() + self.inputs

    def bind(self, buffers: LayerBuffers) -> None:
        rows = len(buffers.x)
        through = buffers.saved[: rows * self.inputs].reshape(buffers.x.shape) if buffers.dx.size else buffers.dx
        self._bind(buffers, buffers.x, buffers.y, buffers.dy, through, rows * self.inputs)

    def forward(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        super().forward(p, buffers, context)
        add_to(buffers.y.reshape(-1), buffers.x.reshape(-1))

    def backward_input(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        if buffers.dx.size:
            buffers.dx[...] = buffers.dy  # before the layers overwrite it
        super().backward_input(p, buffers, context)
        if buffers.dx.size:
            add_to(buffers.dx.reshape(-1), buffers.inner[0].dx.reshape(-1))

    @classmethod
    def from_table(cls, table: Table, shape: tuple[int, ...]) -> Layer:
        layers = table.layers(shape)
        if layers[-1].out_shape != layers[0].shape:
            raise table.fail(f"{layers[0].shape} comes in but {layers[-1].out_shape} goes out; they are added")
        if layers[-1].needs_output:
            raise table.fail(
                f"the last layer within may not be {layers[-1].kind} with an output of its own: its output is not kept "
                "after the sum; end with a linear layer"
            )
        return cls(layers[0].shape, layers)

    def onnx(self, graph: "Graph", p: dict[str, Array], x: str) -> str:
        return graph.add("Add", x, super().onnx(graph, p, x))


@dataclass(frozen=True)
class Flatten(Layer):
    """The same numbers as one vector. Costs nothing."""

    kind: ClassVar[str] = "flatten"
    aliased: ClassVar[bool] = True

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.inputs,)

    def bind(self, buffers: LayerBuffers) -> None:
        buffers.inner = not np.may_share_memory(buffers.x, buffers.y)  # within another layer, at its end

    def forward(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        """Copy x to y if they are different buffers; mostly they are one."""
        if buffers.inner:
            buffers.y[...] = buffers.x

    def backward_input(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        """Copy dy to dx if they are different buffers; mostly they are one."""
        if buffers.inner and buffers.dx.size:
            buffers.dx[...] = buffers.dy

    def onnx(self, graph: "Graph", p: dict[str, Array], x: str) -> str:
        return graph.reshape(x, self.out_shape)


@dataclass(frozen=True)
class Activation(Layer):
    """y = function(x) as a layer of its own; as part of a dense layer or a convolution it is cheaper.

    Parameters
    ----------
    function : str
        One of `ACTIVATIONS`.
    """

    function: str

    kind: ClassVar[str] = "activation"

    @property
    def needs_output(self) -> bool:
        return True

    def saved_numbers(self) -> int:
        return self.outputs if self.function in SLOPED else 0

    def bind(self, buffers: LayerBuffers) -> None:
        slope = buffers.saved.reshape(buffers.y.shape) if buffers.saved.size else buffers.saved.reshape(0, 0)
        buffers.inner = slope, ACTIVATIONS[self.function]

    def forward(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        slope, code = buffers.inner
        buffers.y[...] = buffers.x
        activate(buffers.y, slope, 0, len(buffers.y), code)

    def backward_input(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        slope, code = buffers.inner
        if buffers.dx.size:
            buffers.dx[...] = buffers.dy
            deactivate(buffers.y, slope, buffers.dx, 0, len(buffers.y), code)

    @classmethod
    def from_table(cls, table: Table, shape: tuple[int, ...]) -> Layer:
        return cls(shape, table.activation("function", None))

    def onnx(self, graph: "Graph", p: dict[str, Array], x: str) -> str:
        return graph.activate(x, self.function)


@dataclass(frozen=True)
class Dropout(Layer):
    """While training, each number is set to 0 with probability `rate`, the others are scaled up (Hinton et al. 2012).

    Parameters
    ----------
    rate : float
        From 0 to below 1.
    number : int
        Distinguishes the dropout layers of a model: the choice depends on (seed, step, sample, number) alone.
    """

    rate: float
    number: int

    kind: ClassVar[str] = "dropout"

    def forward(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        self._apply(buffers.x, buffers.y, context)

    def backward_input(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        if buffers.dx.size:
            self._apply(buffers.dy, buffers.dx, context)

    def _apply(self, source: Array, target: Array, context: StepContext) -> None:
        if context.training:
            key = (context.seed * 1_000_003 + self.number) % 2**63
            dropout(source, target, self.rate, key, context.step, context.sample)
        else:
            target[...] = source

    @classmethod
    def from_table(cls, table: Table, shape: tuple[int, ...]) -> Layer:
        rate = table.number("rate", None, 0.0, 1.0)
        return cls(shape, rate, table.whole("number", next(table.numbers), least=0))

    def onnx(self, graph: "Graph", p: dict[str, Array], x: str) -> str:
        return x
