"""Where a run goes on from: the newest step that the nodes' memory or the checkpoints hold as a whole.

The same after a killed job, a lost node, or an order to leave: whoever is there now says what it has, rank 0 says which
step counts, and every layer goes from a node that holds it to the rank that trains it from here on.
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
    """What the nodes remember of a run.

    Attributes
    ----------
    generation, step : int
    where : dict
        By layer, or part of one: the rank that can read it, and the copy's path there.
    tables : list of dict
        What each layer is.
    newest : int
        The newest step that some rank had made.
    slots : tuple of str
        Of the optimizer that was there: what lies beside the parameters.
    """

    generation: int
    step: int
    where: dict[ParameterRange, tuple[int, str]]
    tables: list[dict[str, Any]]
    newest: int
    slots: tuple[str, ...] = ()


def recall(comm: "Intracomm", run: str) -> tuple[Recalled | None, list[str]]:
    """What the nodes of these ranks remember of a run, and notes on what is lost, on rank 0. Collective over `comm`."""
    nodes = comm.allgather(node_name())
    found: list[FoundReplica] = []
    faults: list[str] = []
    if nodes.index(nodes[comm.rank]) == comm.rank:  # one rank looks for each node
        found, faults = NodeMemory(run, nodes[comm.rank]).inventory()
    every = comm.gather((found, faults))
    if every is None:
        return None, []
    held = [(rank, copy) for rank, (copies, _) in enumerate(every) for copy in copies]
    notes = [f"memory of {nodes[rank]}: {text}" for rank, (_, texts) in enumerate(every) for text in texts]
    return _newest(held, notes), notes


def _newest(held: list[tuple[int, FoundReplica]], notes: list[str]) -> Recalled | None:
    if not held:
        return None
    tables: dict[int, dict[str, Any]] = {}
    for _, copy in held:
        tables |= dict(zip(copy.layers, copy.tables, strict=True))
    layers = held[0][1].total
    best = newest(held, layers)
    if best is None:
        last = max((copy.generation, copy.step) for _, copy in held)
        there = covered(part for _, copy in held if (copy.generation, copy.step) == last for part in copy.pieces())
        gone = ", ".join(str(index) for index in range(layers) if index not in there)
        notes.append(
            f"no step is whole in the memory of the nodes that are left: layers {gone} of step {last[1]} are lost"
        )
        return None
    slots = next(copy.slots for _, copy in held if (copy.generation, copy.step) == best[:2])
    return Recalled(*best, [tables[n] for n in range(layers)], max(copy.step for _, copy in held), slots)


def fetch(
    comm: "Intracomm", recalled: Recalled, owners: Sequence[int], mine: Callable[[int], tuple[Array, dict[str, Array]]]
) -> None:
    """Bring each layer's parameters and slots to its owner, in the order of the chain. Collective over `comm`.

    Parameters
    ----------
    comm : Intracomm
    recalled : Recalled
        The same on every rank.
    owners : sequence of int
        Rank that trains each layer from here on.
    mine : callable
        Flat parameters and slots of a layer of this rank, to be filled in.
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
    """What a copy of layers `first` ... `last` - 1 holds; `what`: generation, stage, owner."""
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
    """Two versions of each of this rank's stages. Collective; `UserError` on every rank if one of them has no room."""
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
