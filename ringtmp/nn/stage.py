"""A stage: the layers of one rank, their parameters, and the slots in which micro-batches live.

A slot holds a micro-batch on a rank from the posting of its receives to the completion of its last send: input, every
layer's output, and the gradients at both ends. All slots are allocated before training starts; a slot is reused once
its micro-batch has left.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ringtmp.kernels.elementwise import squared_norm
from ringtmp.nn.buffers import BufferPlan, flags_of, rows_of
from ringtmp.nn.layer import Array, LayerBuffers, Parameters, StepContext, aligned, pieces
from ringtmp.nn.layer_state import LayerState, Side, deal
from ringtmp.nn.model import Model
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.threads import Pool

LOOK = 100e-6  # seconds; a look at the inbox takes a twentieth of it


@dataclass(frozen=True)
class Part:
    """Samples of a micro-batch that one thread takes: number of the first one, and the buffers at each layer."""

    start: int
    buffers: tuple[LayerBuffers, ...]


@dataclass(frozen=True)
class Work:
    """Views into one slot for a micro-batch of a given number of rows."""

    x: Array  # input of the stage [rows, features]; received, or read from the data set
    y: Array  # output of the stage; sent on
    dy: Array  # gradient at the output; received, or made by the loss
    dx: Array  # gradient at the input; sent back (size 0 on the first stage)
    labels: Array  # [rows, labels]; on the first and the last stage
    scores: tuple[Array, Array, Array]  # output, labels and gradient as the loss sees them: a row for each prediction
    shared: bool  # whether the gradient takes the output's place
    parts: tuple[Part, ...]  # its samples, dealt over the threads of the rank


class Stage:
    """Layers `first` to `last` - 1 of a model.

    Parameters
    ----------
    model : Model
        The whole model.
    first, last : int
        Range of layers, not empty.
    dtype : numpy dtype
        float32 or float64.
    optimizer : Optimizer
        Updates the layers.
    rows : int
        Most rows of a micro-batch.
    slots : int
        Most micro-batches that are under way at once.
    threads : int
        Threads of this rank. They share the samples of a micro-batch in F and I, and the layers in W and U; the terms
        and the order of each sum stay the same, and with them the bits.
    recompute : bool or sequence of bool
        For each layer, or for all: recompute the output in I instead of keeping it; W must then follow before the next
        I.
    kept : dict of LayerState, optional
        By index: layers of an earlier stage of this rank that are reused with their values.
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
        self.states = [
            (kept or {}).get(index) or LayerState.of(model, index, self.dtype, optimizer)
            for index in range(first, last)
        ]
        self._own = [state.parameters for state in self.states]
        layers = [state.layer for state in self.states]
        scratch = max(layer.scratch_numbers(rows) for layer in layers)
        self._scratch = [aligned(scratch, self.dtype) for _ in range(threads)]
        self._pool = Pool(threads)
        self._dealt = deal([(n, state) for n, state in enumerate(self.states) if state.flat.size], threads)
        again = flags_of(recompute, len(layers))
        self.recompute = any(again)
        self._again = [n for n, flag in enumerate(again) if flag]
        self._plan = BufferPlan.of(model, first, last, again)
        self._rooms = [self._plan.allocate(rows, self.dtype, {})]
        shared = self._rooms[0] if self.recompute else {}
        self._rooms += [self._plan.allocate(rows, self.dtype, shared) for _ in range(slots - 1)]
        self._works: dict[tuple[int, int], Work] = {}
        self._stashes: list[list[tuple[Array, Array]]] = []
        self._sides: list[Side] = []  # two: the live version, and the one that the next update writes
        self._between: Callable[[], None] | None = None  # called before each layer's update
        self._held = [n for n, state in enumerate(self.states) if state.flat.size]
        # Layers of W between which a rank may look at its inbox; `cut` makes more of them.
        self.pieces = [tuple(self._held)] * bool(self._held)

    def house(self, sides: Sequence[Side], between: Callable[[], None] | None = None) -> None:
        """Keep parameters and slots in two sides: each update writes the new version beside the old one.

        Whenever the process ends, one of them is complete. The live one has no values yet.

        Parameters
        ----------
        sides : two Side
            The live version, and the one that the next update writes.
        between : callable, optional
            Called before each layer's update.
        """
        self._sides, self._between = list(sides), between
        for n in range(len(self.states)):
            self._move(n, self._sides[0])

    def _move(self, n: int, side: Side) -> None:
        state = self.states[n]
        state.flat, state.slots = side.arrays(n)
        state.parameters = self._own[n] = state.layer.views(state.flat, state.derived)

    def commit(self, step: int) -> None:
        """Mark the live version complete after its values have been set; it holds the state after `step` updates."""
        if self._sides:
            for n in range(len(self.states)):
                self._sides[0].seal(n)
            self._sides[0].commit(step)

    def initialise(self, seed: int) -> None:
        """Fill the parameters with start values from `seed` and each layer's index."""
        for state in self.states:
            state.layer.initialise(state.flat, seed, state.index)
        self.refresh_cache()

    def refresh_cache(self) -> None:
        """Recompute each layer's cache; call it after the parameters have been set."""
        for state in self.states:
            state.layer.refresh_cache(state.parameters)

    def buffers(self, slot: int) -> tuple[Array, Array, Array]:
        """Whole receive buffers of slot `slot`: input, gradient at the output, labels."""
        room = self._rooms[slot]
        return room["y"][0], room["dy"][-1], room["labels"][0]

    def work(self, slot: int, rows: int) -> Work:
        """Views of slot `slot` for `rows` rows; made once for each pair."""
        key = (slot, rows)
        if key not in self._works:
            self._works[key] = self._make_work(slot, rows)
        return self._works[key]

    def _make_work(self, slot: int, rows: int) -> Work:
        room = self._rooms[slot]

        def cut(flat: Array, width: int) -> Array:
            return rows_of(flat, 0, rows, width)

        first, last = self.states[0].layer, self.states[-1].layer
        x, dx = cut(room["y"][0], first.inputs), cut(room["dy"][0], first.inputs)
        y, dy = cut(room["y"][-1], last.outputs), cut(room["dy"][-1], last.outputs)
        parts, start = [], 0
        for scratch, count in zip(self._scratch, pieces(rows, len(self._scratch)), strict=True):
            if count:
                parts.append(Part(start, self._bind(room, start, start + count, scratch)))
                start += count
        labels = cut(room["labels"][0], self.model.labels)
        predictions = rows * self.model.scored
        flat = labels.reshape(-1) if self.model.loss.of_classes else labels
        scores = (
            (y.reshape(predictions, -1), flat, dy.reshape(predictions, -1)) if self.is_last else (y[:0], flat, dy[:0])
        )
        return Work(x, y, dy, dx, labels, scores, np.may_share_memory(y, dy), tuple(parts))

    def _bind(self, room: dict[str, list[Array]], start: int, stop: int, scratch: Array) -> tuple[LayerBuffers, ...]:
        """Make each layer's buffers for rows `start` to `stop` - 1."""

        def cut(flat: Array, width: int) -> Array:
            return rows_of(flat, start, stop, width)

        all_buffers = []
        for n, state in enumerate(self.states):
            layer, kept = state.layer, state.layer.saved_numbers()
            buffers = LayerBuffers(
                cut(room["y"][n], layer.inputs),
                cut(room["y"][n + 1], layer.outputs),
                cut(room["dy"][n + 1], layer.outputs),
                cut(room["dy"][n], layer.inputs),
                room["saved"][n][start * kept : stop * kept],
                scratch,
            )
            layer.bind(buffers)
            all_buffers.append(buffers)
        return tuple(all_buffers)

    def stash(self, room: int) -> None:
        """Copy the weights and their cache into stash number `room`, which is allocated when first used."""
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
        """Weights of stash number `room`, in the form that `forward` and `backward_input` take."""
        pairs = zip(self.states, self._stashes[room], strict=True)
        return [state.layer.views(flat, derived) for state, (flat, derived) in pairs]

    def stash_flat(self, room: int) -> list[Array]:
        """Flat parameters of each layer in stash number `room`."""
        return [flat for flat, _ in self._stashes[room]]

    def forward(
        self,
        work: Work,
        context: StepContext = StepContext(),
        weights: list[Parameters] | None = None,
        only: slice = slice(None),
    ) -> None:
        """F of the stage's layers.

        Parameters
        ----------
        work : Work
            Views of the micro-batch's slot; `x` is set.
        context : StepContext
            Samples of the micro-batch.
        weights : list of dict, optional
            Parameters of each layer, from `stashed`; without it the stage's own.
        only : slice
            Places in the stage of the layers to run.
        """
        used, states = (weights or self._own)[only], self.states[only]

        def run(part: Part) -> None:
            here = context._replace(sample=context.sample + part.start)
            for state, parameters, buffers in zip(states, used, part.buffers[only], strict=True):
                state.layer.forward(parameters, buffers, here)

        self._pool.each(run, work.parts)

    def loss(self, work: Work, scale: float) -> tuple[float, float]:
        """Sum of the losses over the predictions, and number of correct ones (NaN where the target is a value).

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
        context: StepContext = StepContext(),
        weights: list[Parameters] | None = None,
        only: slice = slice(None),
    ) -> None:
        """I of the layers, last to first, after recomputing what was not kept; the arguments of `forward`."""
        for n in self._again:
            self.forward(work, context, weights, slice(n, n + 1))
        used, states = (weights or self._own)[only], self.states[only]

        def run(part: Part) -> None:
            here = context._replace(sample=context.sample + part.start)
            for state, parameters, buffers in zip(
                reversed(states), reversed(used), reversed(part.buffers[only]), strict=True
            ):
                state.layer.backward_input(parameters, buffers, here)

        self._pool.each(run, work.parts)

    def backward_weight(self, works: Sequence[Work], first: bool, only: Sequence[int] = ()) -> None:
        """W for some micro-batches, in their order.

        The number of micro-batches of a call changes no bit: every gradient is one sum over samples in ascending order.

        Parameters
        ----------
        works : sequence of Work
            Views of the micro-batches' slots, after I.
        first : bool
            Whether these are the first ones of a step: they overwrite the gradients instead of adding to them.
        only : sequence of int
            Places in the stage of the layers to run, one of `pieces`; empty: all.
        """

        def run(thread: int) -> None:
            for n, state in self._dealt[thread]:
                if only and n not in only:
                    continue
                every = [part.buffers[n] for work in works for part in work.parts]
                state.layer.backward_weight(state.gradients, every, first, self._scratch[thread])

        self._pool.each(run, range(len(self._dealt)))

    def add_squares(self, total: float) -> float:
        """`total` plus the squares of all gradients of the stage, layer after layer: every split gives the same sum."""
        for state in self.states:
            if state.flat.size:
                total += squared_norm(state.gradient)
        return total

    def update(self, lr: float, step: int, norm: float = 0.0) -> None:
        """U: one optimizer step on all layers with learning rate `lr`; `step` counts from 1.

        `norm` is the norm of all the model's gradients, if the optimizer limits it.
        """
        new = self._sides[1] if self._sides else None
        if new:
            new.begin()

        def run(thread: int) -> None:
            for n, state in self._dealt[thread]:
                if self._between:
                    self._between()
                self.optimizer.clip(state.gradient, norm)
                into = new.arrays(n) if new else None
                self.optimizer.update(state.flat, state.gradient, state.slots, lr, step, into)
                if new:
                    new.seal(n)  # while it is in the cache
                    self._move(n, new)
                state.layer.refresh_cache(state.parameters)

        self._pool.each(run, range(len(self._dealt)))
        if new:
            for n, state in enumerate(self.states):
                if not state.flat.size:
                    new.seal(n)
            new.commit(step)
            self._sides.reverse()

    def cut(self, seconds: Sequence[float]) -> None:
        """Cut W, `seconds` for each layer, into pieces of at least `LOOK`; with several threads it stays whole."""
        if len(self._scratch) > 1:
            return
        joined = join([seconds[n] for n in self._held], LOOK)
        self.pieces = [tuple(self._held[place] for place in piece) for piece in joined]

    def weight_seconds(self) -> list[float]:
        """Seconds of each layer's W for the largest micro-batch, measured now; call it after `warm_up`."""
        work, seconds = self.work(0, self.rows), [0.0] * len(self.states)
        for n in self._held:
            began = time.perf_counter()
            self.backward_weight([work], True, (n,))
            seconds[n] = time.perf_counter() - began
        return seconds

    def warm_up(self, sizes: Sequence[int], slots: int | None = None) -> None:
        """Touch the buffers and run F, I and W once, so that no training step pays for it.

        `sizes` are the rows of the micro-batches that occur, `slots` is the number of slots to touch (None: all).
        """
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
