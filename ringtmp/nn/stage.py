"""A stage: the layers of one rank, their parameters, and the slots in which micro-batches live.

A slot is a micro-batch's whole life on a rank, from the posting of its receives to the completion of its last send:
input, every layer's output, and the gradients at both ends. All slots are made before training starts; a slot is used
again once its micro-batch is gone.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kernels.elementwise import squared_norm
from ringtmp.nn.layer import Array, Layer, Parameters, Place, StepContext, aligned, pieces
from ringtmp.nn.model import Model
from ringtmp.nn.optimizers import Optimizer, make_slots
from ringtmp.nn.threads import Pool

LOOK = 100e-6  # seconds; a look at the inbox takes a twentieth of it


@dataclass
class LayerState:
    """A layer with its arrays: flat parameters, gradients and optimizer slots, and named views of the first two."""

    index: int
    layer: Layer
    flat: Array
    gradient: Array
    derived: Array
    slots: dict[str, Array]
    parameters: Parameters
    gradients: Parameters


class Side(Protocol):
    """Memory for one version of a stage's parameters and slots (`ringtmp.resilience.node_memory.StageReplica`)."""

    def begin(self) -> None:
        """It is being written: what it holds counts no more."""

    def arrays(self, place: int) -> tuple[Array, dict[str, Array]]:
        """Parameters and slots of the layer at `place` among the stage's."""

    def seal(self, place: int) -> None:
        """A layer is complete."""

    def commit(self, step: int) -> None:
        """All of it is: so many updates are in it."""


@dataclass(frozen=True)
class Part:
    """Samples of a micro-batch that one thread takes through the stage: number of the first, a place at each layer."""

    start: int
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Work:
    """Views into one slot for a micro-batch of so many rows."""

    x: Array  # input of the stage [rows, features]; received, or read from the data set
    y: Array  # output of the stage; sent on
    dy: Array  # gradient at the output; received, or made by the loss
    dx: Array  # gradient at the input; sent back (size 0 on the first stage)
    labels: Array  # [rows, labels]; on the first and the last stage
    scores: tuple[Array, Array, Array]  # output, labels and gradient as the loss sees them: a row for each prediction
    shared: bool  # whether the gradient takes the output's place
    parts: tuple[Part, ...]  # its samples, dealt over the threads of the rank


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
    threads : int
        Of this rank. They share the samples of a micro-batch in F and I, and the layers in W and U; what a number is
        summed from and in which order stays the same, so the bits do.
    recompute : bool or sequence of bool
        For each layer, or for all: do not keep what it makes of a micro-batch, but make it again in I; W must then
        follow before the next I.
    kept : dict, optional
        By index: layers of a stage before this one, to go on with.
    """

    def __init__(
        self,
        model: Model,
        first: int,
        last: int,
        dtype: np.dtype,
        optimizer: Optimizer,
        rows: int,
        slots: int,
        threads: int = 1,
        recompute: bool | Sequence[bool] = False,
        kept: "dict[int, LayerState] | None" = None,
    ) -> None:
        self.model, self.first, self.last = model, first, last
        self.dtype = np.dtype(dtype)
        self.optimizer = optimizer
        self.rows, self.slots = rows, slots
        self.is_first, self.is_last = first == 0, last == len(model.layers)
        self.states = [(kept or {}).get(index) or self._state(index) for index in range(first, last)]
        self._own = [state.parameters for state in self.states]
        layers = [state.layer for state in self.states]
        scratch = max(layer.scratch_numbers(rows) for layer in layers)
        self._scratch = [aligned(scratch, self.dtype) for _ in range(threads)]
        self._pool = Pool(threads)
        self._dealt = _deal([(n, state) for n, state in enumerate(self.states) if state.flat.size], threads)
        again = flags_of(recompute, len(layers))
        self.recompute = any(again)
        self._again = [n for n, flag in enumerate(again) if flag]
        self._plan = _Buffers.of(model, first, last, again)
        self._shared: dict[str, list[Array]] = {}
        self._rooms = [self._room()]
        if self.recompute:
            self._shared = self._rooms[0]
        self._rooms += [self._room() for _ in range(slots - 1)]
        self._works: dict[tuple[int, int], Work] = {}
        self._stashes: list[list[tuple[Array, Array]]] = []
        self._sides: list[Side] = []  # two: the live version, and the one that the next update writes
        self.between: Callable[[], None] | None = None  # called before each layer's update
        self._held = [n for n, state in enumerate(self.states) if state.flat.size]
        # Layers of W between which a rank may look at its inbox; `cut` makes more of them.
        self.pieces = [tuple(self._held)] * bool(self._held)

    def _state(self, index: int) -> LayerState:
        layer = self.model.layers[index]
        flat, gradient = aligned(layer.count, self.dtype), aligned(layer.count, self.dtype)
        slots = make_slots(self.optimizer, flat, aligned)
        derived = aligned(layer.derived_numbers(), self.dtype)
        views = layer.views(flat, derived), layer.views(gradient)
        return LayerState(index, layer, flat, gradient, derived, slots, *views)

    def _room(self) -> dict[str, list[Array]]:
        """Flat buffers of one slot, each large enough for `rows` rows; what is made again lies in the first one's."""
        plan, rows, shared = self._plan, self.rows, self._shared
        y: list[Array] = []
        dy: list[Array] = []
        for n, group in enumerate(plan.groups):
            if n and group == plan.groups[n - 1]:
                y.append(y[-1])
                dy.append(dy[-1])
                continue
            if shared and plan.shares_output[n]:
                y.append(shared["y"][n])
            else:
                y.append(aligned(rows * plan.widths[n], np.int64 if n == 0 and self._tokens else self.dtype))
            if shared and plan.shares_gradient[n]:
                dy.append(shared["dy"][n])
            elif plan.loss_in_place and group == plan.groups[-1]:
                dy.append(y[-1])  # the loss writes its gradient over the output: no second copy of the logits
            else:
                dy.append(aligned(rows * plan.widths[n] * (group > 0 or not self.is_first), self.dtype))
        saved = [
            shared["saved"][n] if shared and plan.again[n] else aligned(rows * numbers, self.dtype)
            for n, numbers in enumerate(plan.saved)
        ]
        ends = self.is_first or self.is_last
        label_dtype = self.model.loss.label_dtype(self.dtype)
        labels = [aligned(rows * self.model.labels * ends, label_dtype)]
        return {"y": y, "dy": dy, "saved": saved, "labels": labels}

    @property
    def _tokens(self) -> bool:
        return self.is_first and self.model.takes_tokens

    def house(self, sides: Sequence[Side]) -> None:
        """Keep parameters and slots in two sides: each update writes the new version beside the old one.

        Whenever the process ends, one of them is whole. The live one has no values yet.
        """
        self._sides = list(sides)
        for n in range(len(self.states)):
            self._move(n, self._sides[0])

    def _move(self, n: int, side: Side) -> None:
        state = self.states[n]
        state.flat, state.slots = side.arrays(n)
        state.parameters = self._own[n] = state.layer.views(state.flat, state.derived)

    def commit(self, step: int) -> None:
        """The live version has been set, with so many updates in it."""
        if self._sides:
            for n in range(len(self.states)):
                self._sides[0].seal(n)
            self._sides[0].commit(step)

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
            return _rows(flat, 0, rows, width)

        first, last = self.states[0].layer, self.states[-1].layer
        x, dx = cut(room["y"][0], first.inputs), cut(room["dy"][0], first.inputs)
        y, dy = cut(room["y"][-1], last.outputs), cut(room["dy"][-1], last.outputs)
        parts, start = [], 0
        for scratch, count in zip(self._scratch, pieces(rows, len(self._scratch)), strict=True):
            if count:
                parts.append(Part(start, self._places(room, start, start + count, scratch)))
                start += count
        labels = cut(room["labels"][0], self.model.labels)
        predictions = rows * self.model.scored
        flat = labels.reshape(-1) if self.model.loss.of_classes else labels
        scores = (
            (y.reshape(predictions, -1), flat, dy.reshape(predictions, -1)) if self.is_last else (y[:0], flat, dy[:0])
        )
        return Work(x, y, dy, dx, labels, scores, np.may_share_memory(y, dy), tuple(parts))

    def _places(self, room: dict[str, list[Array]], start: int, stop: int, scratch: Array) -> tuple[Place, ...]:
        """Places of rows `start`...`stop` - 1 at each layer."""

        def cut(flat: Array, width: int) -> Array:
            return _rows(flat, start, stop, width)

        places = []
        for n, state in enumerate(self.states):
            layer, kept = state.layer, state.layer.saved_numbers()
            place = Place(
                cut(room["y"][n], layer.inputs),
                cut(room["y"][n + 1], layer.outputs),
                cut(room["dy"][n + 1], layer.outputs),
                cut(room["dy"][n], layer.inputs),
                room["saved"][n][start * kept : stop * kept],
                scratch,
            )
            layer.attach(place)
            places.append(place)
        return tuple(places)

    def stash(self, room: int) -> None:
        """Copy the weights, and what follows from them, into a room of their own, made when first used."""
        while len(self._stashes) <= room:
            self._stashes.append(
                [
                    (aligned(state.flat.size, self.dtype), aligned(state.derived.size, self.dtype))
                    for state in self.states
                ]
            )
        for state, (flat, derived) in zip(self.states, self._stashes[room], strict=True):
            flat[...] = state.flat
            derived[...] = state.derived

    def stashed(self, room: int) -> list[Parameters]:
        """The weights of a stash, as `forward` and `backward_input` take them."""
        pairs = zip(self.states, self._stashes[room], strict=True)
        return [state.layer.views(flat, derived) for state, (flat, derived) in pairs]

    def stash_flat(self, room: int) -> list[Array]:
        """The flat parameters of each layer in a stash."""
        return [flat for flat, _ in self._stashes[room]]

    def forward(
        self,
        work: Work,
        moment: StepContext = StepContext(),
        weights: list[Parameters] | None = None,
        only: slice = slice(None),
    ) -> None:
        """F of the layers of the stage (or `only` some), with its own weights unless others are given."""
        used, states = (weights or self._own)[only], self.states[only]

        def run(part: Part) -> None:
            here = moment._replace(sample=moment.sample + part.start)
            for state, parameters, place in zip(states, used, part.places[only], strict=True):
                state.layer.forward(parameters, place, here)

        self._pool.each(run, work.parts)

    def loss(self, work: Work, scale: float) -> tuple[float, float]:
        """Loss sum over the predictions and its companion: correct answers, or NaN where the target is a value.

        With `scale` above 0 the gradient of `scale` x loss sum is left in `work.dy` (which may be `work.y`).
        """
        y, labels, dy = work.scores
        if scale > 0 and not work.shared:
            dy[...] = y
            y = dy
        return self.model.loss.evaluate(y, labels, scale)

    def backward_input(
        self,
        work: Work,
        moment: StepContext = StepContext(),
        weights: list[Parameters] | None = None,
        only: slice = slice(None),
    ) -> None:
        """I of the layers (or `only` some), last to first, with the weights of their F, after what was not kept."""
        for n in self._again:
            self.forward(work, moment, weights, slice(n, n + 1))
        used, states = (weights or self._own)[only], self.states[only]

        def run(part: Part) -> None:
            here = moment._replace(sample=moment.sample + part.start)
            for state, parameters, place in zip(
                reversed(states), reversed(used), reversed(part.places[only]), strict=True
            ):
                state.layer.backward_input(parameters, place, here)

        self._pool.each(run, work.parts)

    def backward_weight(self, works: Sequence[Work], first: bool, only: Sequence[int] = ()) -> None:
        """W for some micro-batches, in their order; the `first` of a step overwrite the gradients.

        How many go together changes no bit: every gradient is one sum over samples in ascending order. Layers may go
        one by one (`only`: places among the stage's layers, one of `pieces`).
        """

        def run(thread: int) -> None:
            for n, state in self._dealt[thread]:
                if only and n not in only:
                    continue
                places = [part.places[n] for work in works for part in work.parts]
                state.layer.backward_weight(state.gradients, places, first, self._scratch[thread])

        self._pool.each(run, range(len(self._dealt)))

    def add_squares(self, total: float) -> float:
        """`total` and the squares of all gradients of the stage, layer after layer, so that any cut gives one sum."""
        for state in self.states:
            if state.flat.size:
                total += squared_norm(state.gradient)
        return total

    def update(self, lr: float, step: int, norm: float = 0.0) -> None:
        """U: one optimizer step on all layers; `step` counts from 1; `norm`: of all gradients, if it bounds them."""
        new = self._sides[1] if self._sides else None
        if new:
            new.begin()

        def run(thread: int) -> None:
            for n, state in self._dealt[thread]:
                if self.between:
                    self.between()
                self.optimizer.clip(state.gradient, norm)
                into = new.arrays(n) if new else None
                self.optimizer.update(state.flat, state.gradient, state.slots, lr, step, into)
                if new:
                    new.seal(n)  # while it is in the cache
                    self._move(n, new)
                state.layer.derive(state.parameters)

        self._pool.each(run, range(len(self._dealt)))
        if new:
            for n, state in enumerate(self.states):
                if not state.flat.size:
                    new.seal(n)
            new.commit(step)
            self._sides.reverse()

    def cut(self, seconds: Sequence[float]) -> None:
        """W in pieces that last at least `LOOK`, given the seconds of each layer's W; threads share a whole one."""
        if len(self._scratch) > 1:
            return
        joined = join([seconds[n] for n in self._held], LOOK)
        self.pieces = [tuple(self._held[place] for place in piece) for piece in joined]

    def weight_seconds(self) -> list[float]:
        """How long each layer's W takes now, for the largest micro-batch; after `warm_up`."""
        work, seconds = self.work(0, self.rows), [0.0] * len(self.states)
        for n in self._held:
            began = time.perf_counter()
            self.backward_weight([work], True, (n,))
            seconds[n] = time.perf_counter() - began
        return seconds

    def warm_up(self, sizes: Sequence[int], slots: int | None = None) -> None:
        """Touch every buffer (of so many slots) and run F, I and W once for each size, so that no step pays for it."""
        for room in self._rooms[:slots]:
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


def join(seconds: Sequence[float], least: float) -> list[list[int]]:
    """Places of `seconds`, neighbours joined until each piece lasts at least `least` (the last one may be shorter)."""
    joined: list[list[int]] = []
    gone = least
    for place, each in enumerate(seconds):
        if gone < least:
            joined[-1].append(place)
        else:
            joined.append([place])
            gone = 0.0
        gone += each
    return joined


def flags_of(recompute: bool | Sequence[bool], layers: int) -> tuple[bool, ...]:
    """Whether each layer of a stage is to make again what it makes of a micro-batch."""
    return (recompute,) * layers if isinstance(recompute, bool) else tuple(recompute)


@dataclass(frozen=True)
class _Buffers:
    """Which buffers a stage's slots have, without making them.

    Attributes
    ----------
    groups : list of int
        Buffers that the layers' inputs and the last output lie in: an aliased layer's output is its input's.
    widths : list of int
        Numbers per sample of the same.
    saved : list of int
        Numbers per sample that each layer keeps besides.
    again : tuple of bool
        Layers whose work is made again.
    shares_output, shares_gradient : list of bool
        Of each input and the last output: whether all slots share the buffer, and that of its gradient.
    loss_in_place : bool
        Whether the gradient of the loss lies where the output does.
    """

    groups: list[int]
    widths: list[int]
    saved: list[int]
    again: tuple[bool, ...]
    shares_output: list[bool]
    shares_gradient: list[bool]
    loss_in_place: bool

    @classmethod
    def of(cls, model: Model, first: int, last: int, again: tuple[bool, ...]) -> "_Buffers":
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
        )


def slot_bytes(
    model: Model,
    first: int,
    last: int,
    rows: int,
    dtype: np.dtype,
    recompute: bool | Sequence[bool] = False,
    whole: bool = False,
) -> int:
    """Bytes of each further slot of a stage, without making it; `whole`: of the first one, what all share included."""
    plan, item = _Buffers.of(model, first, last, flags_of(recompute, last - first)), np.dtype(dtype).itemsize
    is_first, total = first == 0, 0
    for n, group in enumerate(plan.groups):
        if n and group == plan.groups[n - 1]:
            continue
        width = plan.widths[n]
        if whole or not plan.shares_output[n]:
            total += width * (8 if n == 0 and is_first and model.takes_tokens else item)
        in_place = plan.loss_in_place and group == plan.groups[-1]
        if (whole or not plan.shares_gradient[n]) and not in_place:
            total += width * item * (group > 0 or not is_first)
    saved = sum(numbers for numbers, flag in zip(plan.saved, plan.again, strict=True) if whole or not flag)
    ends = is_first or last == len(model.layers)
    labels = model.labels * ends * np.dtype(model.loss.label_dtype(dtype)).itemsize
    return rows * (total + saved * item + labels)


def state_bytes(model: Model, first: int, last: int, dtype: np.dtype, slots: int) -> tuple[int, int]:
    """Bytes of a stage's parameters and optimizer slots, and of gradients and what follows from the parameters."""
    layers, item = model.layers[first:last], np.dtype(dtype).itemsize
    count = sum(layer.count for layer in layers)
    return item * count * (1 + slots), item * (count + sum(layer.derived_numbers() for layer in layers))


def _rows(flat: Array, start: int, stop: int, width: int) -> Array:
    """Rows `start`...`stop` - 1 of a flat buffer as [rows, width]; of one that is not there, nothing."""
    return flat[start * width : stop * width].reshape(stop - start, width) if flat.size else flat.reshape(0, 0)


def _deal(states: list[tuple[int, LayerState]], threads: int) -> list[list[tuple[int, LayerState]]]:
    """Layers with parameters over threads, the costliest first, each to the thread with the least so far."""
    dealt: list[list[tuple[int, LayerState]]] = [[] for _ in range(threads)]
    loads = [0] * threads
    for n, state in sorted(states, key=lambda each: -each[1].layer.flops(1) - each[1].flat.size):
        least = loads.index(min(loads))
        dealt[least].append((n, state))
        loads[least] += state.layer.flops(1) + state.flat.size
    return dealt
