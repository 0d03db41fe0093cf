"""Layers made of layers, and those without parameters: a block is one layer of the chain, so a model stays a chain."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from kernels.activations import ACTIVATIONS, SLOPED, activate, deactivate
from kernels.elementwise import add_to, dropout
from ringtmp.nn.layer import Array, Layer, Parameters, Place, StepContext


@dataclass(frozen=True)
class Block(Layer):
    """Layers one after the other. Parameters have the place of their layer before their name: `0.weight`.

    Parameters
    ----------
    layers : tuple of Layer
        At least one.
    """

    layers: tuple[Layer, ...]

    kind: ClassVar[str] = "block"

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

    def natural(self, flat: Array) -> dict[str, Array]:
        named: dict[str, Array] = {}
        for n, (layer, part) in enumerate(self._parts(flat)):
            named |= {f"{n}.{name}": array for name, array in layer.natural(part).items()}
        return named

    def store(self, flat: Array, arrays: dict[str, Array]) -> None:
        for n, (layer, part) in enumerate(self._parts(flat)):
            prefix = f"{n}."
            layer.store(part, {key.removeprefix(prefix): a for key, a in arrays.items() if key.startswith(prefix)})

    def attach(self, place: Place) -> None:
        self._attach(place, place.x, place.y, place.dy, place.dx, 0)

    def _attach(self, place: Place, x: Array, y: Array, dy: Array, dx: Array, start: int) -> None:
        """Places of the layers between these ends; `start`: what of `saved` is taken already."""
        rows = len(x)

        def take(numbers: int) -> Array:
            nonlocal start
            start += rows * numbers
            return place.saved[start - rows * numbers : start]

        place.inner = []
        for layer in self.layers[:-1]:
            if layer.aliased:
                out, grad = x, dx
            else:
                out, grad = (take(layer.outputs).reshape(rows, layer.outputs) for _ in range(2))
            place.inner.append(Place(x, out, grad, dx, take(layer.saved_numbers()), place.scratch))
            x, dx = out, grad
        place.inner.append(Place(x, y, dy, dx, take(self.layers[-1].saved_numbers()), place.scratch))
        for layer, inner in zip(self.layers, place.inner, strict=True):
            layer.attach(inner)

    def derive(self, p: Parameters) -> None:
        for n, layer in enumerate(self.layers):
            layer.derive(p[str(n)])

    def forward(self, p: Parameters, place: Place, moment: StepContext) -> None:
        for n, (layer, inner) in enumerate(zip(self.layers, place.inner, strict=True)):
            layer.forward(p[str(n)], inner, moment)

    def backward_input(self, p: Parameters, place: Place, moment: StepContext) -> None:
        for n in reversed(range(len(self.layers))):
            self.layers[n].backward_input(p[str(n)], place.inner[n], moment)

    def backward_weight(self, g: Parameters, places: Sequence[Place], first: bool, scratch: Array) -> None:
        for n, layer in enumerate(self.layers):
            layer.backward_weight(g[str(n)], [place.inner[n] for place in places], first, scratch)

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.kind, "shape": list(self.shape), "layers": [layer.to_dict() for layer in self.layers]}


@dataclass(frozen=True)
class Residual(Block):
    """y = x + layers(x); what comes out of the layers has the shape of x."""

    kind: ClassVar[str] = "residual"

    @property
    def needs_output(self) -> bool:
        """The last layer's own output goes up in the sum, so a layer that needs it may not come last."""
        return False

    def saved_numbers(self) -> int:
        return super().saved_numbers() + self.inputs

    def attach(self, place: Place) -> None:
        rows = len(place.x)
        through = place.saved[: rows * self.inputs].reshape(place.x.shape) if place.dx.size else place.dx
        self._attach(place, place.x, place.y, place.dy, through, rows * self.inputs)

    def forward(self, p: Parameters, place: Place, moment: StepContext) -> None:
        super().forward(p, place, moment)
        add_to(place.y.reshape(-1), place.x.reshape(-1))

    def backward_input(self, p: Parameters, place: Place, moment: StepContext) -> None:
        if place.dx.size:
            place.dx[...] = place.dy  # before the layers overwrite it
        super().backward_input(p, place, moment)
        if place.dx.size:
            add_to(place.dx.reshape(-1), place.inner[0].dx.reshape(-1))


@dataclass(frozen=True)
class Flatten(Layer):
    """The same numbers as one vector. Costs nothing."""

    kind: ClassVar[str] = "flatten"
    aliased: ClassVar[bool] = True

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.inputs,)

    def attach(self, place: Place) -> None:
        place.inner = not np.may_share_memory(place.x, place.y)  # within another layer, at its end

    def forward(self, p: Parameters, place: Place, moment: StepContext) -> None:
        """Mostly nothing: y is x."""
        if place.inner:
            place.y[...] = place.x

    def backward_input(self, p: Parameters, place: Place, moment: StepContext) -> None:
        """Mostly nothing: dx is dy."""
        if place.inner and place.dx.size:
            place.dx[...] = place.dy


@dataclass(frozen=True)
class Activation(Layer):
    """y = function(x), alone; after a dense layer or a convolution it is cheaper as theirs."""

    function: str

    kind: ClassVar[str] = "activation"

    @property
    def needs_output(self) -> bool:
        return True

    def saved_numbers(self) -> int:
        return self.outputs if self.function in SLOPED else 0

    def attach(self, place: Place) -> None:
        slope = place.saved.reshape(place.y.shape) if place.saved.size else place.saved.reshape(0, 0)
        place.inner = slope, ACTIVATIONS[self.function]

    def forward(self, p: Parameters, place: Place, moment: StepContext) -> None:
        slope, code = place.inner
        place.y[...] = place.x
        activate(place.y, slope, 0, len(place.y), code)

    def backward_input(self, p: Parameters, place: Place, moment: StepContext) -> None:
        slope, code = place.inner
        if place.dx.size:
            place.dx[...] = place.dy
            deactivate(place.y, slope, place.dx, 0, len(place.y), code)


@dataclass(frozen=True)
class Dropout(Layer):
    """While training, each number is left out with probability `rate`, the others are scaled up (Hinton et al. 2012).

    Which, depends on (seed, step, sample, `number`) alone; `number` tells the dropout layers of a model apart.
    """

    rate: float
    number: int

    kind: ClassVar[str] = "dropout"

    def forward(self, p: Parameters, place: Place, moment: StepContext) -> None:
        self._apply(place.x, place.y, moment)

    def backward_input(self, p: Parameters, place: Place, moment: StepContext) -> None:
        if place.dx.size:
            self._apply(place.dy, place.dx, moment)

    def _apply(self, source: Array, target: Array, moment: StepContext) -> None:
        if moment.training:
            key = (moment.seed * 1_000_003 + self.number) % 2**63
            dropout(source, target, self.rate, key, moment.step, moment.sample)
        else:
            target[...] = source
