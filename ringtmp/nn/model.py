"""A model is a chain of layers and a loss."""

import math
from dataclasses import dataclass
from typing import Any

from ringtmp.errors import UserError
from ringtmp.kernels.gemm import DEPTH
from ringtmp.kernels.registry import LOSSES, Loss
from ringtmp.nn.layer import Layer
from ringtmp.nn.layer_spec import layers_from_tables
from ringtmp.nn.model_spec import tables_of


@dataclass(frozen=True)
class Model:
    """A chain of layers and the loss at its end.

    Attributes
    ----------
    layers : tuple of Layer
        At least one; each takes the shape that the one before gives.
    loss : Loss
        Evaluated on the last layer's output.
    """

    layers: tuple[Layer, ...]
    loss: Loss

    @property
    def parameters(self) -> int:
        """Number of parameters of all layers."""
        return sum(layer.count for layer in self.layers)

    @property
    def takes_tokens(self) -> bool:
        """Whether samples are tokens (int64), not numbers."""
        return self.layers[0].vocabulary > 0

    @property
    def labels(self) -> int:
        """Labels (or target values) per sample."""
        last = self.layers[-1]
        return last.outputs // last.out_shape[-1] if self.loss.of_classes else last.outputs

    @property
    def scored(self) -> int:
        """Predictions per sample, over which losses are averaged: its places, or 1."""
        return self.labels if self.loss.of_classes else 1

    @property
    def families(self) -> set[str]:
        """Families of kernels that the layers need."""
        return set().union({"base"}, *(layer.families() for layer in self.layers))

    @property
    def places(self) -> int:
        """Rows of a sample in the largest products: the places of a sequence, or 1."""
        return math.prod(self.layers[-1].out_shape[:-1])

    def w_group(self, rows: int, micro_batches: int) -> int:
        """Number of micro-batches that one product of W takes: just enough to fill it.

        Parameters
        ----------
        rows : int
            Samples of a micro-batch.
        micro_batches : int
            Micro-batches of a step, the upper bound.
        """
        return min(micro_batches, max(1, DEPTH // (rows * self.places)))

    def layer_name(self, index: int) -> str:
        """Name of layer `index` in checkpoints, such as `003-dense`: by place in the chain, never by rank."""
        return f"{index:03d}-{self.layers[index].kind}"

    def to_list(self) -> list[dict[str, Any]]:
        """The layers as plain tables."""
        return [layer.to_table() for layer in self.layers]


def build_model(
    spec: str | list[dict[str, Any]],
    loss: str,
    shape: int | tuple[int, ...],
    target: str,
    outputs: int,
    labels: int = 1,
    text: bool = False,
) -> Model:
    """The model that `spec` describes, checked against the data.

    Parameters
    ----------
    spec : str or list of dict
        Short form, or one table per layer.
    loss : str
        `auto` (cross-entropy for classes, mse for values), or one of `ringtmp.kernels.registry.LOSSES`.
    shape : int or tuple of int
        Shape of one sample.
    target : str
        `classes` or `values`.
    outputs : int
        Number of classes, or width of the target.
    labels : int
        Labels per sample: more than one for sequences, one for each place.
    text : bool
        Whether samples are tokens, of `outputs` kinds.

    Raises
    ------
    UserError
        The form is wrong, or a size does not fit the data.
    """
    shape = (shape,) if isinstance(shape, int) else shape
    features = math.prod(shape)
    tables, named = tables_of(spec, outputs) if isinstance(spec, str) else (spec, None)
    if named and math.prod(named) != features:
        given = "x".join(map(str, named))
        raise UserError(f"model: takes {given} inputs but the data has {features} features per sample")
    if not tables:
        raise UserError("model: has no layers; expected at least one")
    layers = layers_from_tables(tables, named or shape)
    usual = {"classes": "cross-entropy", "values": "mse"}[target]
    chosen = LOSSES[usual if loss == "auto" else loss]
    if chosen.target != target:
        raise UserError(f"loss: {loss} does not fit data whose target is {target}; expected {usual} or auto")
    out = layers[-1].out_shape
    if target == "classes" and out[-1] < outputs:
        raise UserError(
            f"model: gives {out[-1]} outputs but the data has labels 0 to {outputs - 1}; expected {outputs}"
        )
    if target == "classes" and math.prod(out[:-1]) != labels:
        raise UserError(
            f"model: predicts {math.prod(out[:-1])} labels per sample (it gives {out}), but the data has {labels}"
        )
    if target == "values" and math.prod(out) != outputs:
        raise UserError(f"model: gives {math.prod(out)} outputs but the data's target has {outputs}")
    model = Model(layers, chosen)
    first = layers[0]
    if text and 0 < first.vocabulary < outputs:
        raise UserError(
            f"model: the embedding has {first.vocabulary} tokens but the data {outputs}; expected {outputs}"
        )
    if model.takes_tokens != text:
        raise UserError(
            "model: takes tokens; expected --data text:FILE"
            if model.takes_tokens
            else "model: the data is text; expected a gpt: model, or one whose first layer is an embedding"
        )
    return model
