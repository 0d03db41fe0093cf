"""The buffers in which micro-batches live on a stage: their number, their sizes, and which of them slots share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ringtmp.kernels.registry import Loss
from ringtmp.nn.layer import Array, aligned
from ringtmp.nn.model import Model


def flags_of(recompute: bool | Sequence[bool], layers: int) -> tuple[bool, ...]:
    """Flag of each of a stage's layers: whether it recomputes its output instead of keeping it.

    Parameters
    ----------
    recompute : bool or sequence of bool
        One flag for all layers, or one for each.
    layers : int
        Number of layers of the stage.
    """
    return (recompute,) * layers if isinstance(recompute, bool) else tuple(recompute)


@dataclass(frozen=True)
class BufferPlan:
    """Which buffers a stage's slots have, without allocating them.

    Attributes
    ----------
    groups : list of int
        Buffer that each layer's input and the last output lie in: an aliased layer's output lies in that of its input.
    widths : list of int
        Numbers per sample of each layer's input and of the last output.
    saved : list of int
        Numbers per sample that each layer keeps besides.
    again : tuple of bool
        Whether each layer's output is recomputed instead of kept.
    shares_output, shares_gradient : list of bool
        Of each input and the last output: whether all slots share its buffer, and the buffer of its gradient.
    loss_in_place : bool
        Whether the gradient of the loss overwrites the output.
    takes_input, takes_tokens : bool
        Whether the stage is the first one, so that its input needs no gradient; and whether that input is tokens.
    labels : int
        Labels per sample that a slot holds: those of the model on the first and the last stage, else 0.
    loss : Loss
        Loss of the model.
    """

    groups: list[int]
    widths: list[int]
    saved: list[int]
    again: tuple[bool, ...]
    shares_output: list[bool]
    shares_gradient: list[bool]
    loss_in_place: bool
    takes_input: bool
    takes_tokens: bool
    labels: int
    loss: Loss

    @classmethod
    def of(cls, model: Model, first: int, last: int, again: tuple[bool, ...]) -> "BufferPlan":
        """Plan the buffers of a stage.

        Parameters
        ----------
        model : Model
            The whole model.
        first, last : int
            The stage is layers `first` to `last` - 1.
        again : tuple of bool
            For each layer of the stage: whether its output is recomputed instead of kept.
        """
        layers = model.layers[first:last]
        groups = [0]
        for layer in layers:
            groups.append(groups[-1] + (not layer.aliased))
        within = [0 < group < groups[-1] for group in groups]
        made_by = [False, *again]
        needed = any(layer.needs_output for layer, group in zip(layers, groups[1:], strict=True) if group == groups[-1])
        return cls(
            groups,
            [layers[0].inputs] + [layer.outputs for layer in layers],
            [layer.saved_numbers() for layer in layers],
            again,
            [inner and made for inner, made in zip(within, made_by, strict=True)],
            [inner and any(again) for inner in within],
            last == len(model.layers) and not needed and not any(again),
            first == 0,
            first == 0 and model.takes_tokens,
            model.labels * (first == 0 or last == len(model.layers)),
            model.loss,
        )

    def allocate(self, rows: int, dtype: np.dtype, shared: dict[str, list[Array]]) -> dict[str, list[Array]]:
        """Allocate one slot.

        Parameters
        ----------
        rows : int
            Most rows of a micro-batch.
        dtype : numpy dtype
            Dtype of all numbers but tokens and labels.
        shared : dict
            The first slot, if slots share buffers; empty otherwise.

        Returns
        -------
        dict of list of array
            Flat buffers: ``y`` and ``dy`` of each input and the last output, ``saved`` of each layer, ``labels``.
        """
        y: list[Array] = []
        dy: list[Array] = []
        for n, group in enumerate(self.groups):
            if n and group == self.groups[n - 1]:
                y.append(y[-1])
                dy.append(dy[-1])
                continue
            if shared and self.shares_output[n]:
                y.append(shared["y"][n])
            else:
                y.append(aligned(rows * self.widths[n], np.int64 if n == 0 and self.takes_tokens else dtype))
            if shared and self.shares_gradient[n]:
                dy.append(shared["dy"][n])
            elif self.loss_in_place and group == self.groups[-1]:
                dy.append(y[-1])  # the loss writes its gradient over the output: no second copy of the logits
            else:
                dy.append(aligned(rows * self.widths[n] * (group > 0 or not self.takes_input), dtype))
        saved = [
            shared["saved"][n] if shared and self.again[n] else aligned(rows * numbers, dtype)
            for n, numbers in enumerate(self.saved)
        ]
        labels = [aligned(rows * self.labels, self.loss.label_dtype(dtype))]
        return {"y": y, "dy": dy, "saved": saved, "labels": labels}


def slot_bytes(
    model: Model,
    first: int,
    last: int,
    rows: int,
    dtype: np.dtype,
    recompute: bool | Sequence[bool] = False,
    whole: bool = False,
) -> int:
    """Bytes of a slot of a stage, without allocating it.

    Parameters
    ----------
    model : Model
        The whole model.
    first, last : int
        The stage is layers `first` to `last` - 1.
    rows : int
        Most rows of a micro-batch.
    dtype : numpy dtype
        Dtype of all numbers but tokens and labels.
    recompute : bool or sequence of bool
        Whether all layers, or each of them, recompute their output instead of keeping it.
    whole : bool
        Whether to count what all slots share too: the bytes of the first slot instead of a further one.
    """
    plan, item = BufferPlan.of(model, first, last, flags_of(recompute, last - first)), np.dtype(dtype).itemsize
    total = 0
    for n, group in enumerate(plan.groups):
        if n and group == plan.groups[n - 1]:
            continue
        width = plan.widths[n]
        if whole or not plan.shares_output[n]:
            total += width * (8 if n == 0 and plan.takes_tokens else item)
        in_place = plan.loss_in_place and group == plan.groups[-1]
        if (whole or not plan.shares_gradient[n]) and not in_place:
            total += width * item * (group > 0 or not plan.takes_input)
    saved = sum(numbers for numbers, flag in zip(plan.saved, plan.again, strict=True) if whole or not flag)
    labels = plan.labels * np.dtype(plan.loss.label_dtype(dtype)).itemsize
    return rows * (total + saved * item + labels)


def state_bytes(model: Model, first: int, last: int, dtype: np.dtype, slots: int) -> tuple[int, int]:
    """Bytes of a stage's parameters and optimizer slots, and bytes of its gradients and derived parameters.

    Parameters
    ----------
    model : Model
        The whole model.
    first, last : int
        The stage is layers `first` to `last` - 1.
    dtype : numpy dtype
        Dtype of all of them.
    slots : int
        Arrays that the optimizer keeps for each parameter array.
    """
    layers, item = model.layers[first:last], np.dtype(dtype).itemsize
    count = sum(layer.count for layer in layers)
    return item * count * (1 + slots), item * (count + sum(layer.derived_numbers() for layer in layers))


def rows_of(flat: Array, start: int, stop: int, width: int) -> Array:
    """Rows `start` to `stop` - 1 of the flat buffer `flat` as a view [rows, width]; [0, 0] if `flat` is empty."""
    return flat[start * width : stop * width].reshape(stop - start, width) if flat.size else flat.reshape(0, 0)
