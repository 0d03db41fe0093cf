"""A chain of layers as an ONNX graph (opset 17): what other programs run.

Images stay [height, width, channels] as here; a convolution or a pool stands between two transpositions, which a
runtime that optimises removes where two meet.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ringtmp.nn.layer import Array
from ringtmp.nn.model import Model
from ringtmp.nn.onnx_graph import Graph

OPSET = 17


def model_of(
    model: Model,
    parameters: Iterable[tuple[str, dict[str, Array]]],
    normalisation: dict[str, Any],
    sample_shape: Sequence[int],
    dtype: np.dtype,
) -> onnx.ModelProto:
    """The graph of a network: input `x` [n, ...] as in training, outputs `outputs` and, for classes, `probabilities`.

    Parameters
    ----------
    model : Model
        The network.
    parameters : iterable of (str, dict of array)
        Name of each layer and its parameters, in their own shapes.
    normalisation : dict
        How training normalised the data (`DataInfo.normalisation`).
    sample_shape : sequence of int
        Shape of one sample.
    dtype : numpy dtype
        Dtype of all numbers but tokens.

    Raises
    ------
    UserError
        A layer has no ONNX form.
    """
    graph, kind = Graph(dtype), helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def stated(key: str) -> str:
        return graph.constant(np.asarray(normalisation[key], dtype))

    x = "x"
    if not model.takes_tokens:
        x = graph.reshape(x, (math.prod(sample_shape),))
        if normalisation["kind"] != "none":
            x = graph.add("Div", graph.add("Sub", x, stated("mean")), stated("std"))
        x = graph.reshape(x, model.layers[0].shape)
    for layer, (_, arrays) in zip(model.layers, parameters, strict=True):
        x = layer.onnx(graph, arrays, x)
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
    found.ir_version = min(found.ir_version, 10)  # the newest version that runtimes of the last years read
    onnx.checker.check_model(found)
    return found
