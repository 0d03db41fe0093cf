"""What a layer is: parameters, start values, and forward, I and W as separate calls.

A layer holds no arrays. Its parameters lie in one flat array (so that one fused kernel updates them), its activations
in the buffers of a slot (so that nothing is allocated while training).

    forward                 y = layer(x)
    backward_input   (I)    dx from dy; leaves in `dy` what W needs
    backward_weight  (W)    gradients += the sum over these micro-batches, in ascending order of samples

Every number that these write depends on its own sample alone, or is one sum in ascending order of samples. So results
depend neither on the rank that computes them, nor on the division of a batch into micro-batches, nor on the number of
micro-batches that one W takes together.
"""

import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ringtmp.errors import UserError
from ringtmp.kernels.gemm import panels_to_rows, rows_to_panels
from ringtmp.nn.layer_spec import LAYERS, Table

if TYPE_CHECKING:
    from ringtmp.nn.onnx_graph import Graph

_DRAWN = 1 << 18  # start values that are drawn at a time

Array = NDArray[Any]
Parameters = dict[str, Any]  # views by name; of a layer made of layers, such dictionaries by name


class StepContext(NamedTuple):
    """The samples of a micro-batch: the key of random choices, so that no rank or division of the batch changes them.

    Attributes
    ----------
    training : bool
        Whether the run trains: dropout acts only then.
    seed : int
        Seed of the run.
    step : int
        Optimizer step, from 0.
    sample : int
        Number of the micro-batch's first sample in the batch, from 0.
    """

    training: bool = False
    seed: int = 0
    step: int = 0
    sample: int = 0  # number of its first sample in the batch


@dataclass
class LayerBuffers:
    """The arrays of a micro-batch at one layer: views into a slot, made once.

    Attributes
    ----------
    x, y : array [rows, inputs], [rows, outputs]
        Input and output.
    dy, dx : array [rows, outputs], [rows, inputs]
        Gradients at y and x; dx has size 0 if it is not needed (the first layer of a model).
    saved : array [rows * saved_numbers]
        Numbers that F keeps for I, and I for W.
    scratch : array
        Flat, shared by all layers and micro-batches of a thread; its contents do not outlive a call.
    inner : Any
        Result of `Layer.bind` for these buffers.
    """

    x: Array
    y: Array
    dy: Array
    dx: Array
    saved: Array
    scratch: Array
    inner: Any = None


@dataclass(frozen=True)
class Layer:
    """Base of all layers.

    Parameters
    ----------
    shape : tuple of int
        Shape of one input sample: (features,), (places, features) or (height, width, channels).
    """

    shape: tuple[int, ...]

    kind: ClassVar[str]  # name in tables and checkpoints; a class that has one can be built by it
    takes_shape: ClassVar[bool] = False  # as first layer it takes samples in their own shape, not as a vector
    aliased: ClassVar[bool] = False  # y is x in another shape: it has no separate buffers
    packed: ClassVar[tuple[str, ...]] = ()  # parameters that lie in panels (`ringtmp.kernels.gemm`)
    family: ClassVar[str] = "base"  # of its kernels (`ringtmp.kernels.compilation`)

    def __init_subclass__(cls, **options: Any) -> None:
        """Let tables name the class by its `kind`."""
        super().__init_subclass__(**options)
        if "kind" in cls.__dict__:
            LAYERS.add(cls.kind, cls, cls.__module__)

    @classmethod
    def from_table(cls, table: Table, shape: tuple[int, ...]) -> "Layer":
        """Make the layer that a table describes.

        Parameters
        ----------
        table : Table
            Every key must be read.
        shape : tuple of int
            Shape of one input sample.

        Raises
        ------
        UserError
            A value is wrong, or does not fit the shape.
        """
        return cls(shape)

    @property
    def vocabulary(self) -> int:
        """Kinds of tokens that the layer takes (int64, from 0); 0: it takes numbers."""
        return 0

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of one output sample."""
        return self.shape

    @cached_property
    def inputs(self) -> int:
        """Numbers per input sample."""
        return math.prod(self.shape)

    @cached_property
    def outputs(self) -> int:
        """Numbers per output sample."""
        return math.prod(self.out_shape)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter, in the order in which they lie in the flat array."""
        return {}

    @cached_property
    def count(self) -> int:
        """Number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def needs_output(self) -> bool:
        """Whether I reads y."""
        return False

    def families(self) -> set[str]:
        """Families of kernels that the layer needs."""
        return {self.family}

    def flops(self, rows: int) -> int:
        """Floating-point operations of F, I and W together for `rows` samples; element-wise operations do not count."""
        return 0

    def traffic(self, rows: int, itemsize: int) -> int:
        """Least bytes that F, I and W move for `rows` samples, with numbers of `itemsize` bytes.

        Parameters are moved three times, x, y and their gradients twice.
        """
        return itemsize * (3 * self.count + 2 * rows * (self.inputs + self.outputs))

    def saved_numbers(self) -> int:
        """Numbers per sample that F keeps for I or I for W, besides x, y and dy."""
        return 0

    def scratch_numbers(self, rows: int) -> int:
        """Numbers of scratch that the calls need for micro-batches of `rows` samples."""
        return 0

    def derived_numbers(self) -> int:
        """Numbers of the cache that I needs, such as transposed weights; `refresh_cache` fills it once per step."""
        return 0

    def initialise(self, flat: Array, seed: int, index: int) -> None:
        """Fill `flat`, array [count], with start values from a counter-based generator.

        Its key is the run's `seed` and the layer's `index` in the model, never a rank or a shape.
        """
        self.draw(flat, np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64))))

    def draw(self, flat: Array, rng: np.random.Generator) -> None:
        """Fill `flat`, array [count], with start values drawn from the generator `rng`."""

    def views(self, flat: Array, derived: Array | None = None) -> Parameters:
        """Named views into a flat array: each of its parameter's shape, or flat if the parameter is `packed`.

        Parameters
        ----------
        flat : array [count]
            Parameters, gradients or an optimizer slot.
        derived : array [derived_numbers], optional
            The cache; added under the name ``derived``.
        """
        views, start = {}, 0
        for name, shape in self.shapes.items():
            part = flat[start : start + math.prod(shape)]
            views[name] = part if name in self.packed else part.reshape(shape)
            start += part.size
        if derived is not None:
            views["derived"] = derived
        return views

    def unpack(self, flat: Array) -> dict[str, Array]:
        """Parameters by name, in their own shapes; empty ones are left out.

        Parameters
        ----------
        flat : array [count]
            Parameters, gradients or an optimizer slot.
        """
        found = {}
        for name, part in self.views(flat).items():
            shape = self.shapes[name]
            if part.size:
                found[name] = _from_panels(part, shape) if name in self.packed else part
        return found

    def pack(self, flat: Array, arrays: dict[str, Array]) -> None:
        """Copy named arrays into a flat array: the reverse of `unpack`.

        Parameters
        ----------
        flat : array [count]
            Receives the numbers.
        arrays : dict of array
            By name, in the parameters' own shapes.
        """
        for name, part in self.views(flat).items():
            if part.size:
                part[...] = _to_panels(arrays[name]) if name in self.packed else arrays[name]

    def bind(self, buffers: LayerBuffers) -> None:
        """Prepare the views that the calls need and store them in `buffers.inner`; called once for each `buffers`."""

    def refresh_cache(self, p: Parameters) -> None:
        """Fill `p["derived"]` from the other parameters in `p`; called after start values and after each update."""

    def forward(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        """F: compute y from x.

        Parameters
        ----------
        p : dict
            Views of the parameters, from `views`.
        buffers : LayerBuffers
            Arrays of the micro-batch; `y` and `saved` are written.
        context : StepContext
            Samples of the micro-batch.
        """
        raise NotImplementedError

    def backward_input(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        """I: compute dx from dy.

        Parameters
        ----------
        p : dict
            Views of the parameters with which F ran.
        buffers : LayerBuffers
            Arrays of the micro-batch after F; `dx` is written, and `dy` is overwritten with what W needs.
        context : StepContext
            Samples of the micro-batch.
        """
        raise NotImplementedError

    def backward_weight(self, g: Parameters, all_buffers: Sequence[LayerBuffers], first: bool, scratch: Array) -> None:
        """W: add the gradients of some micro-batches, in their order.

        Parameters
        ----------
        g : dict
            Views of the gradients, from `views`.
        all_buffers : sequence of LayerBuffers
            Arrays of the micro-batches after I.
        first : bool
            Whether these are the first ones of a step: they overwrite `g` instead of adding to it.
        scratch : array [scratch_numbers or more]
            Scratch of this call.
        """

    def onnx(self, graph: "Graph", p: dict[str, Array], x: str) -> str:
        """Add the layer's nodes to an ONNX graph.

        Parameters
        ----------
        graph : Graph
            Graph under construction.
        p : dict of array
            Parameters in their own shapes.
        x : str
            Name of the input in the graph.

        Returns
        -------
        str
            Name of the output.

        Raises
        ------
        UserError
            The layer has no ONNX form.
        """
        raise UserError(f"export: a {self.kind} layer has no ONNX form; expected .safetensors")

    def to_table(self) -> dict[str, Any]:
        """The layer as a plain table, as stored in checkpoints: its input's shape, and values that are no defaults."""
        table: dict[str, Any] = {"type": self.kind, "shape": list(self.shape)}
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if field.default is MISSING or value != field.default:
                table[field.name] = value
        return table


def _matrices(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Number of matrices in a packed parameter, and their rows and columns."""
    count = shape[0] if len(shape) == 4 else 1  # of a convolution: one for each row of the kernel
    return count, math.prod(shape[:-1]) // count, shape[-1]


def _from_panels(flat: Array, shape: tuple[int, ...]) -> Array:
    count, rows, columns = _matrices(shape)
    result = np.empty((count, rows, columns), flat.dtype)
    for matrix, part in zip(result, flat.reshape(count, -1), strict=True):
        panels_to_rows(part, rows, columns, matrix)
    return result.reshape(shape)


def _to_panels(array: Array) -> Array:
    count, rows, columns = _matrices(array.shape)
    source = np.ascontiguousarray(array).reshape(count, rows * columns)
    result = np.empty_like(source)
    for part, matrix in zip(result, source, strict=True):
        rows_to_panels(matrix, 0, columns, rows, columns, part, 0, rows, 0)
    return result.reshape(-1)


def draw_normal(flat: Array, deviation: float, rng: np.random.Generator) -> None:
    """Fill `flat`, array [n], with normal numbers of standard deviation `deviation` from the generator `rng`.

    The numbers are drawn block by block: a layer may fill half of its node's memory.
    """
    for start in range(0, flat.size, _DRAWN):
        part = flat[start : start + _DRAWN]
        part[...] = rng.standard_normal(part.size) * deviation


def draw_panels(flat: Array, shape: tuple[int, ...], deviation: float, rng: np.random.Generator) -> None:
    """Fill a packed parameter with normal numbers, drawn row by row in the parameter's own shape, some rows at a time.

    Parameters
    ----------
    flat : array [product of shape]
        Receives the numbers, in panels.
    shape : tuple of int
        The parameter's own shape.
    deviation : float
        Standard deviation.
    rng : numpy Generator
        Source of the numbers.
    """
    count, rows, columns = _matrices(shape)
    for part in flat.reshape(count, -1):
        at_once = max(1, _DRAWN // columns)
        for at in range(0, rows, at_once):
            block = rng.standard_normal((min(at_once, rows - at), columns)) * deviation
            source = block.astype(flat.dtype).reshape(-1)
            rows_to_panels(source, 0, columns, len(block), columns, part, 0, rows, at)


def aligned(count: int, dtype: DTypeLike) -> Array:
    """A zeroed flat array of `count` numbers of `dtype` that starts on a cache line (64 bytes)."""
    item = np.dtype(dtype).itemsize
    room = np.zeros(count * item + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + count * item].view(dtype)


def pieces(rows: int, count: int) -> tuple[int, ...]:
    """Sizes of `count` pieces of `rows` that differ by one at most, larger ones first."""
    return tuple(rows // count + (number < rows % count) for number in range(count))
