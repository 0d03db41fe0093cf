"""A chunk: one stage of this rank and all micro-batches that are under way in it.

Micro-batches enter in the order of the timetable, each into a slot of its own from the posting of its receives to the
completion of its last send. Of the free slots the one used last is taken first: it is still in the cache.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ringtmp.nn.layer import StepContext
from ringtmp.nn.stage import Stage, Work
from ringtmp.ring.gates import Gates, all_open
from ringtmp.ring.links import StageLinks
from ringtmp.ring.weight_versions import WeightVersions
from ringtmp.run.timetable import Cursor, Timetable

if TYPE_CHECKING:
    from mpi4py.MPI import Request


class WeightGroup(NamedTuple):
    """Micro-batches of one step whose W is one product.

    Attributes
    ----------
    works : list of Work
    step, number, size : int
        Step, number of the first micro-batch within it, and number of micro-batches.
    end : int
        Position in the stream of the micro-batch behind the last one.
    """

    works: list[Work]
    step: int
    number: int
    size: int
    end: int


class Chunk:
    """Cursors, slots and receives of one stage, and what of it can run.

    Parameters
    ----------
    stage : Stage
    index : int
        Of the chunk among those of this rank.
    number : int
        Of the stage along the chain.
    table : Timetable
    versions : WeightVersions
        Of the stage's weights; the live one is the number of updates made before.
    window : callable
        Takes `index`, gives the number of micro-batches that may have a slot now; never more than the stage has slots.
    links : StageLinks
    gates : Gates
    gradients_made : callable, optional
        Called with the layers (their positions in the stage) whose gradients of step `updates` have just been
        completed on this rank, and that step.
    """

    def __init__(
        self,
        stage: Stage,
        index: int,
        number: int,
        table: Timetable,
        versions: WeightVersions,
        window: Callable[[int], int],
        links: StageLinks,
        gates: Gates,
        gradients_made: Callable[[Sequence[int], int], None] | None = None,
    ) -> None:
        self.stage, self.index, self.number, self.table, self.versions = stage, index, number, table, versions
        self.window, self.gates, self.gradients_made = window, gates, gradients_made
        self.first, self.last = stage.is_first, stage.is_last
        self.start = self.updates = start = versions.live
        phase = table.index_of(start)
        self.end = table.end  # phases from here on are not run
        self.f = Cursor(table, phase, training_only=False)
        self.i = Cursor(table, phase, training_only=True)
        self.w = Cursor(table, phase, training_only=True)
        self.forwards = self.inputs = self.weights = 0
        self.micro_batches = len(table.train_sizes)  # of a step
        # Positions in the stream, all at first that of the first F.
        self.origin = self.f.place  # of the first micro-batch of this launch: receives are counted from it
        self.acquired = self.f.place  # micro-batches before it have had a slot
        self.done = self.f.place  # those before it need their slot only until their sends are complete
        self.retired = self.f.place  # those before it have given their slot back
        self.free = list(reversed(range(stage.slots)))
        self.home = [0] * stage.slots  # slot of a place, by place modulo the slots
        self.pending: list[list[Request]] = [[] for _ in range(stage.slots)]
        self.activations, self.gradients, self.labels = links.activations, links.gradients, links.labels
        self.activations_out, self.gradients_out = links.activations_out, links.gradients_out
        self.labels_out = links.labels_out
        self.group: WeightGroup | None = None  # of which W is under way
        self.piece = 0  # of the stage's pieces: the next one of that W

    # ---- what can run -------------------------------------------------------------------------------------------

    @property
    def place(self) -> int:
        """Place of the next F in the stream."""
        return self.f.phase.start + self.f.number

    def can_forward(self) -> bool:
        """Whether the next F has its slot, its input, its labels and its weights, and its gates are open."""
        f = self.f
        if f.index >= self.end or self.versions.wanted(f.phase) is None:
            return False
        place = f.phase.start + f.number
        if place >= self.acquired:
            return False
        last = self.gates.last_forward
        if last and f.phase.training and f.number == self.micro_batches - 1 and not all_open(last, self.updates):
            return False  # no rank can update before this forward (`ringtmp.ring.replicas`)
        arrived = place - self.origin
        if self.activations is not None and self.activations.arrived <= arrived:
            return False
        return self.labels is None or self.labels.arrived > arrived

    def can_backward_input(self) -> bool:
        """Whether the gradient of the oldest micro-batch without I has arrived, and its W may follow."""
        if self.stage.recompute and self.weights == (self.updates - self.start + 1) * self.micro_batches:
            return False  # W follows at once (`actions`), and belongs to the step after the U that is due
        return self.inputs < (self.forwards if self.gradients is None else self.gradients.arrived)

    def can_backward_weight(self) -> bool:
        """Whether a micro-batch of the step has had I and not W."""
        return self.weights < self.inputs and self.weights < (self.updates - self.start + 1) * self.micro_batches

    def must_update(self) -> bool:
        """Whether every W of the step is done, and all gates of the update are open."""
        return self.weights_done() and all_open(self.gates.update, self.updates)

    def weights_done(self) -> bool:
        """Whether every W of the step is done, and the gates of the gradients are open (all rings have theirs)."""
        done = self.weights == (self.updates - self.start + 1) * self.micro_batches
        return done and all_open(self.gates.gradients, self.updates)

    def evaluating(self) -> bool:
        """Whether the next F belongs to an evaluation."""
        return self.f.index < self.end and not self.f.phase.training

    def exhausted(self) -> bool:
        """Whether no F is left."""
        return self.f.index >= self.end

    def finished(self) -> bool:
        """Whether all phases have been run, all updates made, and all sends are complete."""
        # The last U may still wait for a norm or a sum.
        updated = self.forwards == (self.updates - self.start) * self.micro_batches
        return self.f.index >= self.end and self.retired >= self.f.place and updated

    # ---- slots --------------------------------------------------------------------------------------------------

    def slot(self, place: int) -> int:
        """The slot of the micro-batch at `place`."""
        return self.home[place % len(self.home)]

    def poll(self) -> tuple[bool, bool]:
        """Note what has arrived, free slots and assign new ones; whether an activation and a gradient have arrived."""
        came = self.activations is not None and self.activations.poll()
        back = self.gradients is not None and self.gradients.poll()
        if self.labels is not None:
            self.labels.poll()
        home = self.home
        while self.retired < self.done:
            slot = home[self.retired % len(home)]
            sends = self.pending[slot]
            while sends and sends[-1].Test():
                sends.pop()
            if sends:
                break
            self.free.append(slot)
            self.retired += 1
        room = self.retired + self.window(self.index)
        while self.acquired < room:
            slot = self.free.pop()
            home[self.acquired % len(home)] = slot
            if self.activations is not None:
                self.activations.post(slot)
            self.acquired += 1
        return came, back

    # ---- what actions compute and count -------------------------------------------------------------------------

    def forward_ended(self) -> bool:
        """Count F of the next micro-batch, whose output has been sent; whether it was the last of its phase."""
        if self.f.phase.training:
            self.forwards += 1
        else:
            self.done = self.place + 1
        return self.f.advance()

    def backward_input(self, context: StepContext) -> tuple[Work, int]:
        """Compute I of the oldest micro-batch without one, with the weights of its F; its buffers and its slot."""
        place = self.i.place
        slot = self.slot(place)
        work = self.stage.work(slot, self.i.rows)
        if self.stage.recompute:  # it overwrites the output, whose send must be complete
            for request in self.pending[slot]:
                request.Wait()
        self.stage.backward_input(work, context, self.versions.leave(place))
        self.inputs += 1
        self.i.advance()
        return work, slot

    def begin_weights(self, most: int) -> None:
        """Gather up to `most` micro-batches of one step that wait for W, the oldest first, into one product."""
        w, number = self.w, self.w.number
        count = min(most, self.inputs - self.weights, len(w.phase.sizes) - number)
        step, works, until = w.phase.step, [], w.place + count
        for _ in range(count):
            works.append(self.stage.work(self.slot(w.place), w.rows))
            w.advance()
        self.group, self.piece = WeightGroup(works, step, number, count, until), 0

    def weights_piece(self) -> bool:
        """Compute W of the group for the next piece of the stage (some layers); whether that was the last piece."""
        assert self.group
        group = self.group
        works, number, count = group.works, group.number, group.size
        pieces = self.stage.pieces
        if pieces:
            self.stage.backward_weight(works, number == 0, pieces[self.piece])
            if self.gradients_made is not None and number + count == self.micro_batches:
                self.gradients_made(pieces[self.piece], self.updates)
        self.piece += 1
        if self.piece < len(pieces):
            return False
        self.weights += count
        self.done = group.end
        self.group = None
        return True

    def update(self, rate: float, norm: float) -> None:
        """Compute U with the learning rate `rate`; `norm`: of all gradients, if it bounds them, else 0."""
        self.versions.before_update()
        self.stage.update(rate, self.updates + 1, norm)
        self.updates += 1
