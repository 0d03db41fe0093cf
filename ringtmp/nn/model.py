"""A model is a chain of layers and a loss. Parsing of the short form and of TOML tables."""

import re
from dataclasses import dataclass
from typing import Any

import kernels
from ringtmp.errors import UserError
from ringtmp.nn.layers import Dense, dense_from_table

_FORM = "mlp:IN-WIDTH-OUT or mlp:IN-WIDTHxCOUNT-OUT[,activation=relu]"


@dataclass(frozen=True)
class Model:
    """A chain of layers and the loss at its end (`cross-entropy` or `mse`)."""

    layers: tuple[Dense, ...]
    loss: str

    @property
    def parameters(self) -> int:
        """Number of parameters of all layers."""
        return sum(layer.size for layer in self.layers)

    def layer_name(self, index: int) -> str:
        """Name of a layer in checkpoints, such as `003-dense`: by place in the chain, never by rank."""
        return f"{index:03d}-{self.layers[index].kind}"

    def to_list(self) -> list[dict[str, Any]]:
        """The layers as plain tables."""
        return [layer.to_dict() for layer in self.layers]


def build_model(spec: str | list[dict[str, Any]], loss: str, features: int, target: str, outputs: int) -> Model:
    """The model that `spec` describes, checked against the data.

    Parameters
    ----------
    spec : str or list of dict
        Short form, or one table per layer.
    loss : str
        `auto`, `cross-entropy` or `mse`.
    features : int
        Numbers per input sample.
    target : str
        `classes` or `values`.
    outputs : int
        Number of classes, or width of the target.

    Raises
    ------
    UserError
        The form is wrong, or a size does not fit the data.
    """
    tables, given = _short_form(spec) if isinstance(spec, str) else (spec, features)
    if given != features:
        raise UserError(f"model: takes {given} inputs but the data has {features} features per sample")
    layers: list[Dense] = []
    for number, table in enumerate(tables):
        where = f"model: layer {number}"
        if not isinstance(table, dict):
            raise UserError(f"{where}: expected a table, got {table!r}")
        layers.append(dense_from_table(table, layers[-1].outputs if layers else features, where))
    if not layers:
        raise UserError("model: has no layers; expected at least one")
    wanted = {"classes": "cross-entropy", "values": "mse"}[target]
    if loss not in ("auto", wanted):
        raise UserError(f"loss: {loss} does not fit data whose target is {target}; expected {wanted} or auto")
    last = layers[-1].outputs
    if target == "classes" and last < outputs:
        raise UserError(f"model: gives {last} outputs but the data has labels 0 to {outputs - 1}; expected {outputs}")
    if target == "values" and last != outputs:
        raise UserError(f"model: gives {last} outputs but the data's target has {outputs}")
    return Model(tuple(layers), wanted)


def _short_form(text: str) -> tuple[list[dict[str, Any]], int]:
    head, *options = text.split(",")
    family, _, sizes = head.partition(":")
    if family != "mlp":
        raise UserError(f"model: expected {_FORM}, or a TOML file, got {text!r}")
    activation = "relu"
    for option in options:
        key, _, value = option.partition("=")
        if key != "activation" or value not in kernels.ACTIVATIONS:
            raise UserError(f"model: option {option!r}: expected activation={'|'.join(kernels.ACTIVATIONS)}")
        activation = value
    widths: list[int] = []
    for part in sizes.split("-"):
        match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", part)
        if not match:
            raise UserError(f"model: size {part!r} in {text!r}: expected {_FORM}")
        widths += [int(match[1])] * int(match[2] or 1)
    if len(widths) < 2:
        raise UserError(f"model: {text!r} has no layer: expected {_FORM}")
    tables = [{"type": "dense", "units": width, "activation": activation} for width in widths[1:]]
    tables[-1]["activation"] = "linear"
    return tables, widths[0]
