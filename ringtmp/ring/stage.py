"""A stage: the layers of one rank, their parameters, and the slots in which micro-batches live.

A slot is a micro-batch's whole life on a rank, from the posting of its receives to the completion of its last send:
input, every layer's output, and the gradients at both ends. All slots are made before training starts; a slot is used
again once its micro-batch is gone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import kernels
from ringtmp.nn.layers import Array, Dense, aligned
from ringtmp.nn.model import Model
from ringtmp.nn.optimizers import Optimizer, make_slots


@dataclass
class LayerState:
    """A layer with its arrays: flat parameters, gradients and optimizer slots, and named views of the first two."""

    index: int
    layer: Dense
    flat: Array
    gradient: Array
    slots: dict[str, Array]
    parameters: dict[str, Array]
    gradients: dict[str, Array]


@dataclass(frozen=True)
class Work:
    """Views into one slot for a micro-batch of so many rows."""

    x: Array  # input of the stage [rows, features]; received, or read from the data set
    y: Array  # output of the stage; sent on
    dy: Array  # gradient at the output; received, or made by the loss
    dx: Array  # gradient at the input; sent back (size 0 on the first stage)
    labels: Array  # [rows] or [rows, outputs]; on the first and the last stage
    chain: tuple[tuple[LayerState, Array, Array, Array, Array, Array], ...]  # state, x, y, saved, dy, dx of each layer


class Stage:
    """Layers `first` ... `last` - 1 of a model.

    Parameters
    ----------
    model : Model
    first, last : int
        Range of layers, not empty.
    dtype : numpy dtype
        float32 or float64.
    optimizer : Optimizer
    rows : int
        Most rows of a micro-batch.
    slots : int
        Micro-batches that may be under way at once.
    """

    def __init__(
        self, model: Model, first: int, last: int, dtype: np.dtype, optimizer: Optimizer, rows: int, slots: int
    ) -> None:
        self.model, self.first, self.last = model, first, last
        self.dtype = np.dtype(dtype)
        self.optimizer = optimizer
        self.rows, self.slots = rows, slots
        self.is_first, self.is_last = first == 0, last == len(model.layers)
        self.states = [self._state(index) for index in range(first, last)]
        self._rooms = [self._room() for _ in range(slots)]
        self._works: dict[tuple[int, int], Work] = {}

    def _state(self, index: int) -> LayerState:
        layer = self.model.layers[index]
        flat, gradient = aligned(layer.size, self.dtype), aligned(layer.size, self.dtype)
        slots = make_slots(self.optimizer, flat, aligned)
        return LayerState(index, layer, flat, gradient, slots, layer.views(flat), layer.views(gradient))

    def _room(self) -> dict[str, list[Array]]:
        """Flat buffers of one slot, each large enough for `rows` rows."""
        layers = [state.layer for state in self.states]
        widths = [layers[0].inputs] + [layer.outputs for layer in layers]
        label_width = self._label_width() if self.is_first or self.is_last else 0
        label_dtype = np.dtype(np.int64) if self.model.loss == "cross-entropy" else self.dtype
        return {
            "y": [aligned(self.rows * width, self.dtype) for width in widths],
            "dy": [aligned(self.rows * width, self.dtype) for width in widths],
            "saved": [aligned(self.rows * layer.saved_features(), self.dtype) for layer in layers],
            "labels": [aligned(self.rows * label_width, label_dtype)],
        }

    def _label_width(self) -> int:
        return 1 if self.model.loss == "cross-entropy" else self.model.layers[-1].outputs

    def initialise(self, seed: int) -> None:
        """Start values, each layer's by its own index."""
        for state in self.states:
            state.layer.initialise(state.flat, seed, state.index)

    def buffers(self, slot: int) -> tuple[Array, Array, Array]:
        """Whole receive buffers of a slot: input, gradient at the output, labels."""
        room = self._rooms[slot]
        return room["y"][0], room["dy"][-1], room["labels"][0]

    def work(self, slot: int, rows: int) -> Work:
        """The views of a slot for `rows` rows; made once for each pair."""
        key = (slot, rows)
        if key not in self._works:
            self._works[key] = self._make_work(slot, rows)
        return self._works[key]

    def _make_work(self, slot: int, rows: int) -> Work:
        room = self._rooms[slot]
        none = np.empty((0, 0), self.dtype)

        def cut(flat: Array, width: int) -> Array:
            return flat[: rows * width].reshape(rows, width)

        chain = []
        for n, state in enumerate(self.states):
            layer = state.layer
            saved = cut(room["saved"][n], layer.saved_features()) if layer.saved_features() else none
            dx = none if self.is_first and n == 0 else cut(room["dy"][n], layer.inputs)
            chain.append((state, cut(room["y"][n], layer.inputs), cut(room["y"][n + 1], layer.outputs), saved,
                          cut(room["dy"][n + 1], layer.outputs), dx))  # fmt: skip
        labels = room["labels"][0]
        if labels.size and self.model.loss == "cross-entropy":
            labels = labels[:rows]
        elif labels.size:
            labels = cut(labels, self.model.layers[-1].outputs)
        return Work(chain[0][1], chain[-1][2], chain[-1][4], chain[0][5], labels, tuple(chain))

    def forward(self, work: Work) -> None:
        """F of all layers of the stage."""
        for state, x, y, saved, _, _ in work.chain:
            state.layer.forward(state.parameters, x, y, saved)

    def loss(self, work: Work, scale: float) -> tuple[float, float]:
        """Loss sum over the rows and its companion: correct answers, or NaN where the target is a value.

        With `scale` above 0 the gradient of `scale` x loss sum is left in `work.dy`.
        """
        gradient = work.dy if scale > 0 else work.chain[-1][4][:0]
        if self.model.loss == "cross-entropy":
            loss, correct = kernels.softmax_cross_entropy(work.y, work.labels, scale, gradient)
            return loss, float(correct)
        return kernels.mean_squared_error(work.y, work.labels, scale, gradient), float("nan")

    def backward_input(self, work: Work) -> None:
        """I of all layers, last to first."""
        for state, _, y, saved, dy, dx in reversed(work.chain):
            state.layer.backward_input(state.parameters, y, saved, dy, dx)

    def backward_weight(self, work: Work, first: bool) -> None:
        """W of all layers; the `first` micro-batch of a step overwrites the gradients, the others add to them."""
        for state, x, _, _, dy, _ in work.chain:
            state.layer.backward_weight(state.gradients, x, dy, 0.0 if first else 1.0)

    def update(self, lr: float, step: int) -> None:
        """U: one optimizer step on all layers; `step` counts from 1."""
        for state in self.states:
            self.optimizer.update(state.flat, state.gradient, state.slots, lr, step)

    def warm_up(self, sizes: Sequence[int]) -> None:
        """Touch every buffer and run F, I and W once for each size, so that no step pays for the first time."""
        for room in self._rooms:
            for buffers in room.values():
                for buffer in buffers:
                    buffer.fill(0)
        for rows in dict.fromkeys(sizes):
            work = self.work(0, rows)
            self.forward(work)
            if self.is_last:
                self.loss(work, 1.0)
            self.backward_input(work)
            self.backward_weight(work, True)
