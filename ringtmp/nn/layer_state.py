"""A layer's arrays on a rank, the memory they lie in, and how layers are dealt over threads."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ringtmp.nn.layer import Array, Layer, Parameters, aligned
from ringtmp.nn.model import Model
from ringtmp.nn.optimizers import Optimizer, make_slots


@dataclass
class LayerState:
    """A layer with its arrays.

    Attributes
    ----------
    index : int
        Number of the layer in the model.
    layer : Layer
        The layer itself.
    flat, gradient : array [layer.count]
        Parameters and their gradients.
    derived : array [layer.derived_numbers()]
        The cache that `Layer.refresh_cache` fills.
    slots : dict of array [layer.count]
        Slots of the optimizer, by name.
    parameters, gradients : dict
        Named views of `flat` (with `derived`) and `gradient`.
    """

    index: int
    layer: Layer
    flat: Array
    gradient: Array
    derived: Array
    slots: dict[str, Array]
    parameters: Parameters
    gradients: Parameters

    @classmethod
    def of(cls, model: Model, index: int, dtype: np.dtype, optimizer: Optimizer) -> "LayerState":
        """Allocate zeroed arrays for a layer.

        Parameters
        ----------
        model : Model
            The whole model.
        index : int
            Number of the layer in the model.
        dtype : numpy dtype
            Dtype of all arrays.
        optimizer : Optimizer
            Names the slots.
        """
        layer = model.layers[index]
        flat, gradient = aligned(layer.count, dtype), aligned(layer.count, dtype)
        slots = make_slots(optimizer, flat, aligned)
        derived = aligned(layer.derived_numbers(), dtype)
        return cls(index, layer, flat, gradient, derived, slots, layer.views(flat, derived), layer.views(gradient))


class Side(Protocol):
    """Memory for one version of a stage's parameters and slots (`ringtmp.resilience.node_memory`)."""

    def begin(self) -> None:
        """Mark the copy incomplete: it is about to be overwritten."""

    def arrays(self, place: int) -> tuple[Array, dict[str, Array]]:
        """Parameters and slots of the layer at place `place` in the stage."""

    def seal(self, place: int) -> None:
        """Mark the layer at place `place` in the stage complete."""

    def commit(self, step: int) -> None:
        """Mark the copy complete; it holds the state after `step` updates."""


def deal(states: list[tuple[int, LayerState]], threads: int) -> list[list[tuple[int, LayerState]]]:
    """Deal layers over threads: the costliest first, each to the thread with the least work.

    Parameters
    ----------
    states : list of (int, LayerState)
        Layers with their places in the stage.
    threads : int
        Number of threads.

    Returns
    -------
    list of list of (int, LayerState)
        The layers of each thread.
    """
    dealt: list[list[tuple[int, LayerState]]] = [[] for _ in range(threads)]
    loads = [0] * threads
    for n, state in sorted(states, key=lambda each: -each[1].layer.flops(1) - each[1].flat.size):
        least = loads.index(min(loads))
        dealt[least].append((n, state))
        loads[least] += state.layer.flops(1) + state.flat.size
    return dealt
