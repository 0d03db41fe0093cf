"""The speed of this rank: seconds of each layer on its own machine, or on the node that it emulates."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from ringtmp.comm.mpi import raise_on_all
from ringtmp.emulate.layer_costs import Cost, layer_costs
from ringtmp.emulate.nodes import nominal, parse_pace
from ringtmp.kernels.compilation import prepare_kernels
from ringtmp.nn.model import Model
from ringtmp.nn.optimizers import Optimizer

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

# (rows, w_group) -> seconds of each layer's actions for a micro-batch of `rows`; W in products of `w_group` of them.
CostTable = Callable[[int, int], list[Cost]]


def costs_on(model: Model, dtype: np.dtype, optimizer: Optimizer) -> CostTable:
    """Costs on this machine, timed when first asked for unless they are stored.

    Parameters
    ----------
    model : Model
        The whole model.
    dtype : numpy dtype
        Dtype of weights and activations.
    optimizer : Optimizer
        Optimizer whose update is timed.
    """

    @cache
    def table(rows: int, w_group: int) -> list[Cost]:
        prepare_kernels(dtype, model.families)
        costs = layer_costs(model, rows, dtype, optimizer)
        if w_group == 1:
            return costs
        together = layer_costs(model, rows * w_group, dtype, optimizer)
        return [replace(c, backward_weight=t.backward_weight / w_group) for c, t in zip(costs, together, strict=True)]

    return table


def costs_paced(model: Model) -> CostTable:
    """Costs of the layers of `model` on an emulated node of 1 GFLOP/s."""

    @cache
    def table(rows: int, w_group: int) -> list[Cost]:
        costs = []
        for index, layer in enumerate(model.layers):
            one, update = nominal(model, index, rows, 1.0)
            costs.append(Cost(one, one, one, update, layer.flops(rows), 0))
        return costs

    return table


def own_costs(
    comm: "Intracomm",
    model: Model,
    dtype: np.dtype,
    optimizer: Optimizer,
    node_speed: str,
    rows: int,
    micro_batches: int,
) -> list[float]:
    """Seconds of a step that each layer takes on this rank. Collective over `comm`.

    Parameters
    ----------
    comm : mpi4py communicator
        Ranks of one host measure in turn.
    model : Model
        The whole model.
    dtype : numpy dtype
        Dtype of weights and activations.
    optimizer : Optimizer
        Optimizer whose update is timed.
    node_speed : str
        Speeds of emulated nodes (`ringtmp.emulate.nodes.parse_courses`); empty: time the layers on this machine.
    rows : int
        Samples of a micro-batch.
    micro_batches : int
        Micro-batches of a step.

    Raises
    ------
    UserError
        On every rank, if one of them cannot measure its layers.
    """
    with raise_on_all(comm):
        speed, table = 1.0, costs_on(model, dtype, optimizer)
        if node_speed:
            speed, table = parse_pace(node_speed, comm.size)[comm.rank], costs_paced(model)
        return [cost.step(micro_batches) / speed for cost in table(rows, 1)]
    raise AssertionError
