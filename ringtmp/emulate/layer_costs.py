"""What each layer costs on this machine: F, I, W and U timed on its own shapes, kept for later runs."""

import fcntl
import hashlib
import json
import os
from dataclasses import asdict, dataclass

import numpy as np

from ringtmp.kernels._jit import CACHE
from ringtmp.kernels.machine import best
from ringtmp.kernels.tile import simd
from ringtmp.nn.layer import Layer
from ringtmp.nn.model import Model
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.stage import Stage


@dataclass(frozen=True)
class Cost:
    """Seconds of a layer's actions for a micro-batch of a given number of rows, and their operations.

    Attributes
    ----------
    forward, backward_input, backward_weight : float
        Seconds of F, I and W of one micro-batch.
    update : float
        Seconds of U.
    flops, traffic : int
        Floating-point operations of F, I and W together, and the least bytes that they move.
    """

    forward: float
    backward_input: float
    backward_weight: float
    update: float
    flops: int
    traffic: int

    @property
    def seconds(self) -> float:
        """Seconds of F, I and W of one micro-batch."""
        return self.forward + self.backward_input + self.backward_weight

    def step(self, micro_batches: int) -> float:
        """Seconds of a whole step of `micro_batches` micro-batches."""
        return micro_batches * self.seconds + self.update


def measure(model: Model, index: int, rows: int, dtype: np.dtype, optimizer: Optimizer) -> Cost:
    """Time one layer of a model on random numbers.

    Parameters
    ----------
    model : Model
        The whole model.
    index : int
        Number of the layer.
    rows : int
        Samples of a micro-batch.
    dtype : numpy dtype
        Dtype of weights and activations.
    optimizer : Optimizer
        Optimizer whose update is timed.
    """
    stage = Stage(model, index, index + 1, dtype, optimizer, rows, 1)
    stage.initialise(0)
    stage.warm_up([rows])
    work, layer = stage.work(0, rows), model.layers[index]
    rng = np.random.default_rng(0)
    if work.x.dtype.kind == "f":
        work.x[...] = rng.standard_normal(work.x.shape)
    gradient = rng.standard_normal(work.dy.shape).astype(dtype)

    def backward_input() -> None:
        work.dy[...] = gradient  # I overwrites it
        stage.backward_input(work)

    def restore() -> None:
        work.dy[...] = gradient

    forward = best(lambda: stage.forward(work), 0.03)
    back = max(best(backward_input, 0.03) - best(restore, 0.005), 0.0)
    weight = best(lambda: stage.backward_weight([work], True), 0.03)
    update = best(lambda: stage.update(1e-3, 1), 0.02)
    return Cost(forward, back, weight, update, layer.flops(rows), layer.traffic(rows, np.dtype(dtype).itemsize))


def layer_costs(model: Model, rows: int, dtype: np.dtype, optimizer: Optimizer, fresh: bool = False) -> list[Cost]:
    """The cost of every layer of a model; equal layers are timed once.

    The table is stored beside the compiled kernels, so that it goes when they change. Processes of a host take turns:
    side by side they would time each other, and those after the first one find its results.

    Parameters
    ----------
    model : Model
        The whole model.
    rows : int
        Samples of a micro-batch.
    dtype : numpy dtype
        Dtype of weights and activations.
    optimizer : Optimizer
        Optimizer whose update is timed.
    fresh : bool
        Whether to time layers again whose cost is stored.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "costs.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _timed(model, rows, dtype, optimizer, fresh)


def _timed(model: Model, rows: int, dtype: np.dtype, optimizer: Optimizer, fresh: bool) -> list[Cost]:
    path = CACHE / "costs.json"
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError):
        table = {}
    costs, before = [], dict(table)
    done: dict[str, Cost] = {}
    for index, layer in enumerate(model.layers):
        key = _key(layer, index == 0, rows, dtype, optimizer)
        if key not in done:
            if fresh or key not in table:
                table[key] = asdict(measure(model, index, rows, dtype, optimizer))
            done[key] = Cost(**table[key])
        costs.append(done[key])
    if table != before:
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(table))
        temporary.replace(path)
    return costs


def _key(layer: Layer, first: bool, rows: int, dtype: np.dtype, optimizer: Optimizer) -> str:
    facts = json.dumps([layer.to_table(), first, rows, np.dtype(dtype).name, optimizer.name, simd()])
    return hashlib.sha256(facts.encode()).hexdigest()[:24]
