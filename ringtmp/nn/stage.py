"""A stage: the layers of one rank, their parameters, and the slots in which micro-batches live.

A slot is a micro-batch's whole life on a rank, from the posting of its receives to the completion of its last send:
input, every layer's output, and the gradients at both ends. All slots are made before training starts; a slot is used
again once its micro-batch is gone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import kernels
from ringtmp.nn.layer import Array, Layer, Moment, Parameters, Place, aligned
from ringtmp.nn.model import Model
from ringtmp.nn.optimizers import Optimizer, make_slots


@dataclass
class LayerState:
    """A layer with its arrays: flat parameters, gradients and optimizer slots, and named views of the first two."""

    index: int
    layer: Layer
    flat: Array
    gradient: Array
    slots: dict[str, Array]
    parameters: Parameters
    gradients: Parameters


@dataclass(frozen=True)
class Work:
    """Views into one slot for a micro-batch of so many rows."""

    x: Array  # input of the stage [rows, features]; received, or read from the data set
    y: Array  # output of the stage; sent on
    dy: Array  # gradient at the output; received, or made by the loss
    dx: Array  # gradient at the input; sent back (size 0 on the first stage)
    labels: Array  # [rows, labels]; on the first and the last stage
    scores: tuple[Array, Array, Array]  # output, labels and gradient as the loss sees them: a row for each prediction
    places: tuple[Place, ...]  # of each layer


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
        layers = [state.layer for state in self.states]
        self._scratch = aligned(max(layer.scratch_numbers(rows) for layer in layers), self.dtype)
        self._rooms = [self._room() for _ in range(slots)]
        self._works: dict[tuple[int, int], Work] = {}

    def _state(self, index: int) -> LayerState:
        layer = self.model.layers[index]
        flat, gradient = aligned(layer.count, self.dtype), aligned(layer.count, self.dtype)
        slots = make_slots(self.optimizer, flat, aligned)
        derived = aligned(layer.derived_numbers(), self.dtype)
        return LayerState(index, layer, flat, gradient, slots, layer.views(flat, derived), layer.views(gradient))

    def _room(self) -> dict[str, list[Array]]:
        """Flat buffers of one slot, each large enough for `rows` rows; an aliased layer's output is its input."""
        layers, rows = [state.layer for state in self.states], self.rows
        y = [aligned(rows * layers[0].inputs, np.int64 if self._tokens else self.dtype)]
        dy = [aligned(rows * layers[0].inputs * (not self.is_first), self.dtype)]
        for n, layer in enumerate(layers):
            y.append(y[-1] if layer.aliased else aligned(rows * layer.outputs, self.dtype))
            loss_here = self.is_last and n == len(layers) - 1
            if loss_here and not layer.needs_output:
                dy.append(y[-1])  # the loss writes its gradient over the output: no second copy of the logits
            else:
                dy.append(dy[-1] if layer.aliased and dy[-1].size else aligned(rows * layer.outputs, self.dtype))
        ends = self.is_first or self.is_last
        label_dtype = np.dtype(np.int64) if self.model.loss == "cross-entropy" else self.dtype
        return {
            "y": y,
            "dy": dy,
            "saved": [aligned(rows * layer.saved_numbers(), self.dtype) for layer in layers],
            "labels": [aligned(rows * self.model.labels * ends, label_dtype)],
        }

    @property
    def _tokens(self) -> bool:
        return self.is_first and self.model.takes_tokens

    def initialise(self, seed: int) -> None:
        """Start values, each layer's by its own index."""
        for state in self.states:
            state.layer.initialise(state.flat, seed, state.index)
        self.derive()

    def derive(self) -> None:
        """Make what follows from the parameters; after they have been set."""
        for state in self.states:
            state.layer.derive(state.parameters)

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

        def cut(flat: Array, width: int) -> Array:
            return flat[: rows * width].reshape(rows, width)

        none = np.empty((0, 0), self.dtype)
        places = []
        for n, state in enumerate(self.states):
            layer = state.layer
            dx = cut(room["dy"][n], layer.inputs) if room["dy"][n].size else none
            place = Place(cut(room["y"][n], layer.inputs), cut(room["y"][n + 1], layer.outputs),
                          cut(room["dy"][n + 1], layer.outputs), dx, room["saved"][n][: rows * layer.saved_numbers()],
                          self._scratch)  # fmt: skip
            layer.attach(place)
            places.append(place)
        labels = cut(room["labels"][0], self.model.labels) if room["labels"][0].size else none
        y, dy = places[-1].y, places[-1].dy
        predictions = rows * self.model.scored
        flat = labels.reshape(-1) if self.model.loss == "cross-entropy" else labels
        scores = (y.reshape(predictions, -1), flat, dy.reshape(predictions, -1)) if self.is_last else (none, flat, none)
        return Work(places[0].x, y, dy, places[0].dx, labels, scores, tuple(places))

    def forward(self, work: Work, moment: Moment = Moment()) -> None:  # noqa: B008 - immutable
        """F of all layers of the stage."""
        for state, place in zip(self.states, work.places, strict=True):
            state.layer.forward(state.parameters, place, moment)

    def loss(self, work: Work, scale: float) -> tuple[float, float]:
        """Loss sum over the predictions and its companion: correct answers, or NaN where the target is a value.

        With `scale` above 0 the gradient of `scale` x loss sum is left in `work.dy` (which may be `work.y`).
        """
        y, labels, dy = work.scores
        gradient = dy if scale > 0 else dy[:0]
        if self.model.loss == "cross-entropy":
            loss, correct = kernels.softmax_cross_entropy(y, labels, scale, gradient)
            return loss, float(correct)
        return kernels.mean_squared_error(y, labels, scale, gradient), float("nan")

    def backward_input(self, work: Work, moment: Moment = Moment()) -> None:  # noqa: B008 - immutable
        """I of all layers, last to first."""
        for state, place in zip(reversed(self.states), reversed(work.places), strict=True):
            state.layer.backward_input(state.parameters, place, moment)

    def backward_weight(self, works: Sequence[Work], first: bool) -> None:
        """W of all layers for some micro-batches, in their order; the `first` of a step overwrite the gradients.

        How many go together changes no bit: every gradient is one sum over samples in ascending order.
        """
        for n, state in enumerate(self.states):
            if state.flat.size:
                state.layer.backward_weight(state.gradients, [work.places[n] for work in works], first)

    def add_squares(self, total: float) -> float:
        """`total` and the squares of all gradients of the stage, layer after layer, so that any cut gives one sum."""
        for state in self.states:
            if state.flat.size:
                total += kernels.squared_norm(state.gradient)
        return total

    def update(self, lr: float, step: int, norm: float = 0.0) -> None:
        """U: one optimizer step on all layers; `step` counts from 1; `norm`: of all gradients, if it bounds them."""
        for state in self.states:
            if state.flat.size:
                self.optimizer.clip(state.gradient, norm)
                self.optimizer.update(state.flat, state.gradient, state.slots, lr, step)
                state.layer.derive(state.parameters)

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
            self.backward_weight([work], True)
