"""Continue a run from copies in the nodes' memory: find the newest step that they hold completely, and fetch it.

The course is the same after a killed job, a lost node, or an order to leave: every node lists its copies, rank 0
chooses the step, and each layer is sent from a node that holds it to the rank that trains it from then on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ringtmp.comm.mpi import raise_on_all
from ringtmp.errors import UserError
from ringtmp.nn.layer import Array
from ringtmp.resilience.node_memory import (
    FoundReplica,
    NodeMemory,
    ParameterRange,
    ReplicaLayout,
    arrays_of,
    covered,
    newest,
    node_name,
)

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from ringtmp.nn.model import Model


@dataclass(frozen=True)
class Recalled:
    """A step of a run that the nodes' memory holds completely.

    Attributes
    ----------
    generation, step : int
        Generation of the copies, and updates in them.
    where : dict
        By layer, or range of one: a rank that can read it, and the copy's path there.
    tables : list of dict
        Table of each layer.
    newest : int
        The newest step that any rank had made.
    slots : tuple of str
        Optimizer slots that the copies hold.
    """

    generation: int
    step: int
    where: dict[ParameterRange, tuple[int, str]]
    tables: list[dict[str, Any]]
    newest: int
    slots: tuple[str, ...] = ()


def recall(comm: "Intracomm", run: str) -> tuple[Recalled | None, list[str]]:
    """Find the newest step of a run that the memory of these ranks' nodes holds. Collective over `comm`.

    Parameters
    ----------
    comm : Intracomm
        All ranks of the launch.
    run : str
        Identity of the run.

    Returns
    -------
    recalled : Recalled or None
        On rank 0; None: no step is complete, and always on the other ranks.
    notes : list of str
        Lines on what is lost (rank 0).
    """
    # One rank of each node lists the copies there.
    nodes = comm.allgather(node_name())
    found: list[FoundReplica] = []
    faults: list[str] = []
    if nodes.index(nodes[comm.rank]) == comm.rank:
        found, faults = NodeMemory(run, nodes[comm.rank]).inventory()

    # Rank 0 chooses.
    every = comm.gather((found, faults))
    if every is None:
        return None, []
    held = [(rank, copy) for rank, (copies, _) in enumerate(every) for copy in copies]
    notes = [f"memory of {nodes[rank]}: {text}" for rank, (_, texts) in enumerate(every) for text in texts]
    return _newest(held, notes), notes


def _newest(held: list[tuple[int, FoundReplica]], notes: list[str]) -> Recalled | None:
    """Choose the newest step that is complete among copies and the ranks that hold them; add losses to `notes`."""
    if not held:
        return None
    tables: dict[int, dict[str, Any]] = {}
    for _, copy in held:
        tables |= dict(zip(copy.layers, copy.tables, strict=True))
    layers = held[0][1].total
    best = newest(held, layers)
    if best is None:
        last = max((copy.generation, copy.step) for _, copy in held)
        kept = covered(part for _, copy in held if (copy.generation, copy.step) == last for part in copy.pieces())
        gone = ", ".join(str(index) for index in range(layers) if index not in kept)
        notes.append(
            f"no step is complete in the memory of the remaining nodes: layers {gone} of step {last[1]} are lost"
        )
        return None
    slots = next(copy.slots for _, copy in held if (copy.generation, copy.step) == best[:2])
    return Recalled(*best, [tables[n] for n in range(layers)], max(copy.step for _, copy in held), slots)


def fetch(
    comm: "Intracomm", recalled: Recalled, owners: Sequence[int], mine: Callable[[int], tuple[Array, dict[str, Array]]]
) -> None:
    """Send each layer's parameters and slots to its owner, in the order of the chain. Collective over `comm`.

    Parameters
    ----------
    comm : Intracomm
        All ranks of the launch.
    recalled : Recalled
        The same on every rank.
    owners : sequence of int
        Rank that trains each layer from now on.
    mine : callable
        Returns the flat parameters and the slots of a layer of this rank, given its index; these receive the numbers.
    """
    rank = comm.rank
    for part, (holder, path) in sorted(recalled.where.items()):
        owner = owners[part.layer]
        if rank not in (holder, owner):
            continue
        held = _listed(arrays_of(path, part), recalled.slots) if rank == holder else []
        if rank == owner:
            for number, whole in enumerate(_listed(mine(part.layer), recalled.slots)):
                into = whole[part.start : part.stop]
                if holder == owner:
                    into[...] = held[number]
                else:
                    comm.Recv(into, holder, number)
        else:
            for number, array in enumerate(held):
                comm.Send(array, owner, number)


def _listed(arrays: tuple[Array, dict[str, Array]], slots: Sequence[str]) -> list[Array]:
    return [arrays[0], *(arrays[1][name] for name in slots)]


def layout_of(model: "Model", first: int, last: int, slots: Sequence[str], dtype: str, **what: int) -> ReplicaLayout:
    """Describe a copy of a stage.

    Parameters
    ----------
    model : Model
        The whole model.
    first, last : int
        The stage is layers `first` to `last` - 1.
    slots : sequence of str
        Names of the optimizer's slots.
    dtype : str
        Dtype of the numbers, in NumPy's notation.
    **what : int
        `generation`, `stage` and `owner` (see `ReplicaLayout`).
    """
    layers = range(first, last)
    return ReplicaLayout(
        what["generation"],
        what["stage"],
        what["owner"],
        layers=tuple(layers),
        counts=tuple(model.layers[n].count for n in layers),
        tables=tuple(model.layers[n].to_table() for n in layers),
        total=len(model.layers),
        slots=tuple(slots),
        dtype=dtype,
    )


def room_for(comm: "Intracomm", memory: NodeMemory, layouts: Sequence[ReplicaLayout]) -> list[tuple[Any, Any]]:
    """Allocate two versions of each of this rank's stages in the node's memory. Collective over `comm`.

    Parameters
    ----------
    comm : Intracomm
        All ranks of the launch.
    memory : NodeMemory
        Memory of this rank's node.
    layouts : sequence of ReplicaLayout
        Contents of each stage's copies.

    Raises
    ------
    UserError
        On every rank, if one of them cannot allocate them.
    """
    with raise_on_all(comm):
        try:
            memory.make()
            return [memory.create(layout, comm.rank) for layout in layouts]
        except OSError as error:
            need = 2 * sum(layout.size for layout in layouts)
            raise UserError(
                f"state_copies: rank {comm.rank} needs {need / 2**20:.0f} MiB in {memory.folder}: {error.strerror}; "
                "RINGTMP_NODE_MEMORY names another place"
            ) from None
    raise AssertionError
