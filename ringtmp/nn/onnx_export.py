"""A chain of layers as an ONNX graph (opset 17): what other programs run.

Images stay [height, width, channels] as here; a convolution or a pool stands between two transpositions, which a
runtime that optimises removes where two meet.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kernels.norm import EPSILON
from ringtmp.nn.containers import Activation, Block, Dropout, Flatten, Residual
from ringtmp.nn.dense import Dense
from ringtmp.nn.images import AvgPool2D, Conv2D, MaxPool2D
from ringtmp.nn.layer import Array, Layer
from ringtmp.nn.model import Model
from ringtmp.nn.norm import GroupNorm, LayerNorm
from ringtmp.nn.sequences import Attention, Embedding
from ringtmp.nn.sliced import Carry, Columns, Share

OPSET = 17
_PLAIN = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}


class _Graph:
    """Nodes and constants so far; every call adds a node and returns the name of what it makes."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def number(self, value: float) -> str:
        return self.constant(np.asarray(value, self.dtype))

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        return self.add("Reshape", x, self.constant(np.array([-1, *shape], np.int64)))

    def part(self, x: str, first: int, last: int) -> str:
        """Features `first` ... `last` - 1 of each place."""
        ends = (self.constant(np.array([end], np.int64)) for end in (first, last, -1))
        return self.add("Slice", x, *ends)

    def activate(self, x: str, function: str) -> str:
        if function in _PLAIN:
            return self.add(_PLAIN[function], x)
        if function == "silu":
            return self.add("Mul", x, self.add("Sigmoid", x))
        if function == "gelu":
            erf = self.add("Erf", self.add("Mul", x, self.number(math.sqrt(0.5))))
            half = self.add("Mul", x, self.number(0.5))
            return self.add("Mul", half, self.add("Add", erf, self.number(1.0)))
        return x


Maker = Callable[[_Graph, Any, dict[str, Array], str], str]


def _dense(graph: _Graph, layer: Dense, p: dict[str, Array], x: str) -> str:
    y = graph.add("MatMul", x, graph.constant(p["weight"]))
    if layer.bias:
        y = graph.add("Add", y, graph.constant(p["bias"]))
    return graph.activate(y, layer.activation)


def _among_channels(graph: _Graph, x: str, make: Callable[[str], str]) -> str:
    """Something that wants [channels, height, width]."""
    return graph.add("Transpose", make(graph.add("Transpose", x, perm=[0, 3, 1, 2])), perm=[0, 2, 3, 1])


def _conv(graph: _Graph, layer: Conv2D, p: dict[str, Array], x: str) -> str:
    weights = [graph.constant(p["weight"].transpose(3, 2, 0, 1))]
    if layer.bias:
        weights.append(graph.constant(p["bias"]))
    size, stride, pad = [layer.size] * 2, [layer.stride] * 2, [layer.pad] * 4
    y = _among_channels(
        graph,
        graph.reshape(x, layer.shape),
        lambda z: graph.add("Conv", z, *weights, kernel_shape=size, strides=stride, pads=pad),
    )
    return graph.activate(y, layer.activation)


def _pool(graph: _Graph, layer: MaxPool2D | AvgPool2D, p: dict[str, Array], x: str) -> str:
    kind = "MaxPool" if isinstance(layer, MaxPool2D) else "AveragePool"
    size, stride = [layer.size] * 2, [layer.stride] * 2
    return _among_channels(graph, x, lambda z: graph.add(kind, z, kernel_shape=size, strides=stride))


def _layer_norm(graph: _Graph, layer: LayerNorm, p: dict[str, Array], x: str) -> str:
    gain, bias = graph.constant(p["gain"]), graph.constant(p["bias"])
    return graph.add("LayerNormalization", x, gain, bias, axis=-1, epsilon=EPSILON)


def _group_norm(graph: _Graph, layer: GroupNorm, p: dict[str, Array], x: str) -> str:
    h, w, c = layer.shape
    parts = graph.reshape(x, (h * w, layer.groups, c // layer.groups))
    centred = graph.add("Sub", parts, graph.add("ReduceMean", parts, axes=[1, 3]))
    variance = graph.add("ReduceMean", graph.add("Mul", centred, centred), axes=[1, 3])
    deviation = graph.add("Sqrt", graph.add("Add", variance, graph.number(EPSILON)))
    scaled = graph.add("Mul", graph.add("Div", centred, deviation), graph.constant(p["gain"]))
    return graph.reshape(graph.add("Add", scaled, graph.constant(p["bias"])), layer.shape)


def _embedding(graph: _Graph, layer: Embedding, p: dict[str, Array], x: str) -> str:
    return graph.add("Add", graph.add("Gather", graph.constant(p["token"]), x), graph.constant(p["position"]))


def _attention(graph: _Graph, layer: Attention, p: dict[str, Array], x: str) -> str:
    places, width = layer.out_shape
    each = width // layer.heads

    def heads(number: int, order: list[int]) -> str:
        part = graph.reshape(graph.part(x, number * width, (number + 1) * width), (places, layer.heads, each))
        return graph.add("Transpose", part, perm=order)

    q, k, v = heads(0, [0, 2, 1, 3]), heads(1, [0, 2, 3, 1]), heads(2, [0, 2, 1, 3])
    scores = graph.add("Mul", graph.add("MatMul", q, k), graph.number(1 / math.sqrt(each)))
    later = graph.constant(np.triu(np.full((places, places), -np.inf, graph.dtype), 1))
    mixed = graph.add("MatMul", graph.add("Softmax", graph.add("Add", scores, later), axis=-1), v)
    return graph.reshape(graph.add("Transpose", mixed, perm=[0, 2, 1, 3]), layer.out_shape)


def _block(graph: _Graph, layer: Block, p: dict[str, Array], x: str) -> str:
    for n, inner in enumerate(layer.layers):
        prefix = f"{n}."
        x = _layer(graph, inner, {key.removeprefix(prefix): a for key, a in p.items() if key.startswith(prefix)}, x)
    return x


def _residual(graph: _Graph, layer: Residual, p: dict[str, Array], x: str) -> str:
    return graph.add("Add", x, _block(graph, layer, p, x))


def _columns(graph: _Graph, layer: Columns, p: dict[str, Array], x: str) -> str:
    made = _block(graph, layer, p, graph.part(x, 0, layer.features))
    kept = graph.part(x, layer.features * layer.last, layer.shape[-1])
    first = layer.last and layer.shape[-1] == layer.features  # nothing goes along
    return made if first else graph.add("Concat", kept, made, axis=-1)


def _carry(graph: _Graph, layer: Carry, p: dict[str, Array], x: str) -> str:
    return graph.add("Concat", _block(graph, layer, p, x), x, axis=-1)


def _share(graph: _Graph, layer: Share, p: dict[str, Array], x: str) -> str:
    taken = graph.part(x, 0, layer.features)
    total = graph.add("Add", graph.part(x, layer.features, layer.shape[-1]), _block(graph, layer, p, taken))
    return total if layer.last else graph.add("Concat", taken, total, axis=-1)


_MAKERS: dict[type[Layer], Maker] = {
    Dense: _dense,
    Conv2D: _conv,
    MaxPool2D: _pool,
    AvgPool2D: _pool,
    LayerNorm: _layer_norm,
    GroupNorm: _group_norm,
    Embedding: _embedding,
    Attention: _attention,
    Block: _block,
    Residual: _residual,
    Columns: _columns,
    Carry: _carry,
    Share: _share,
    Dropout: lambda graph, layer, p, x: x,
    Flatten: lambda graph, layer, p, x: graph.reshape(x, layer.out_shape),
    Activation: lambda graph, layer, p, x: graph.activate(x, layer.function),
}


def _layer(graph: _Graph, layer: Layer, p: dict[str, Array], x: str) -> str:
    return _MAKERS[type(layer)](graph, layer, p, x)


def model_of(
    model: Model,
    parameters: Iterable[tuple[str, dict[str, Array]]],
    normalisation: dict[str, Any],
    sample_shape: Sequence[int],
    dtype: np.dtype,
) -> onnx.ModelProto:
    """The graph of a network: `x` [n, ...] as training took it in, `outputs` and for classes `probabilities` out.

    Parameters
    ----------
    model : Model
    parameters : iterable
        Of each layer: its name and its parameters, in their own shapes.
    normalisation : dict
        As `DataInfo` states it.
    sample_shape : sequence of int
    dtype : numpy dtype
        Of all numbers but tokens.
    """
    graph, kind = _Graph(dtype), helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def stated(key: str) -> str:
        return graph.constant(np.asarray(normalisation[key], dtype))

    x = "x"
    if not model.takes_tokens:
        x = graph.reshape(x, (math.prod(sample_shape),))
        if normalisation["kind"] != "none":
            x = graph.add("Div", graph.add("Sub", x, stated("mean")), stated("std"))
        x = graph.reshape(x, model.layers[0].shape)
    for layer, (_, arrays) in zip(model.layers, parameters, strict=True):
        x = _layer(graph, layer, arrays, x)
    if not model.loss.of_classes and "target_std" in normalisation:
        x = graph.add("Add", graph.add("Mul", x, stated("target_std")), stated("target_mean"))
    out_shape: list[str | int | None] = ["n", *model.layers[-1].out_shape]
    made = {"outputs": graph.add("Identity", x)}
    if model.loss.probabilities:
        made["probabilities"] = graph.add(model.loss.probabilities, x, axis=-1)
    for node in graph.nodes:
        for name, inner in made.items():
            if node.output[0] == inner:
                node.output[0] = name
    in_shape: list[str | int | None] = ["n", *sample_shape]
    given = helper.make_tensor_value_info("x", TensorProto.INT64 if model.takes_tokens else kind, in_shape)
    results = [helper.make_tensor_value_info(name, kind, out_shape) for name in made]
    body = helper.make_graph(graph.nodes, "ringtmp", [given], results, graph.constants)
    found = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="ringtmp")
    found.ir_version = min(found.ir_version, 10)  # what runtimes of the last years read
    onnx.checker.check_model(found)
    return found
