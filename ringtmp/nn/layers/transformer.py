"""Compound layers of language models: tables that stand for a `Block` of other layers."""

import math
from typing import ClassVar

from ringtmp.nn.layer import Layer
from ringtmp.nn.layer_spec import LAYERS, Table
from ringtmp.nn.layers.containers import Block


class Transformer:
    """A pre-norm block: attention and a two-layer network, each round a residual (Radford et al. 2019)."""

    takes_shape: ClassVar[bool] = False

    @staticmethod
    def from_table(table: Table, shape: tuple[int, ...]) -> Layer:
        """Make the block that `table` describes, for input samples of `shape`. Raises `UserError`."""
        shape = table.sequence(shape)
        width = shape[1]
        heads, hidden = table.whole("heads"), table.whole("hidden", 4 * width)
        if width % heads:
            raise table.fail(f"heads must divide the {width} features that come in, got {heads}")
        activation, scale = table.activation(default="gelu"), table.number("scale", 1.0, 0.0, math.inf)
        rate = table.number("dropout", 0.0, 0.0, 1.0)
        drop = [{"type": "dropout", "rate": rate}] if rate else []
        attend = [
            {"type": "layernorm"},
            {"type": "dense", "units": 3 * width},
            {"type": "attention", "heads": heads},
            {"type": "dense", "units": width, "scale": scale},
            *drop,
        ]
        think = [
            {"type": "layernorm"},
            {"type": "dense", "units": hidden, "activation": activation},
            {"type": "dense", "units": width, "scale": scale},
            *drop,
        ]
        tables = [{"type": "residual", "layers": attend}, {"type": "residual", "layers": think}]
        return Block(shape, table.layers(shape, tables))


class Head:
    """The end of a transformer: layer norm and a projection onto the tokens."""

    takes_shape: ClassVar[bool] = False

    @staticmethod
    def from_table(table: Table, shape: tuple[int, ...]) -> Layer:
        """Make the block that `table` describes, for input samples of `shape`. Raises `UserError`."""
        dense = {"type": "dense", "units": table.whole("units"), "bias": table.flag("bias", True)}
        return Block(shape, table.layers(shape, [{"type": "layernorm"}, dense]))


LAYERS.add("transformer", Transformer, __name__)
LAYERS.add("head", Head, __name__)
