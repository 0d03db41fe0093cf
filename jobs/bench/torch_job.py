"""The same training run in PyTorch (eager, one thread a process): prints samples/s and the losses as JSON.

Usage: python -m ringtmp.jobs.bench.torch_job '{"widths": [...], "batch_size": 256, "micro_batches": 8, "steps": 40,
"skip": 5, "optimizer": "momentum", "ranks": 1}'. Instead of `widths`: `"net": {"spec": "gpt:...", "shape": [128],
"outputs": 65, "labels": 128}`, in the form of `ringtmp.nn.model.build_model`. With `ranks` 2 or more `way` names how
they work together over Gloo: a schedule of `torch.distributed.pipelining`, or `ddp`, where each rank takes its part of
the batch.

Every run proves that it trains: the loss of the first step is that of one process with the same weights and batch, the
loss of the last pass over the samples is below that of the first, and every parameter has changed.
"""

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from ringtmp.jobs.bench.torch_nets import Twin
from ringtmp.nn.layer import aligned
from ringtmp.nn.model import Model, build_model
from ringtmp.schedule.partition import partition

SCHEDULES: dict[str, tuple[Any, int]] = {  # and the stages of each rank
    "gpipe": (ScheduleGPipe, 1),
    "1f1b": (Schedule1F1B, 1),
    "interleaved-1f1b": (ScheduleInterleaved1F1B, 2),
    "interleaved-zb": (ScheduleInterleavedZeroBubble, 2),
    "zbv": (ScheduleZBVZeroBubble, 2),
}
BATCHES = 8  # in memory; a pass over the samples
TOLERANCE = 1e-4

Step = Callable[[Tensor, Tensor], list[Tensor]]  # trains on a batch up to the update; the losses this rank has


@dataclass
class Settings:
    """Settings of a run."""

    batch_size: int
    micro_batches: int
    steps: int
    skip: int
    optimizer: str
    ranks: int = 1
    way: str = "1f1b"
    widths: list[int] | None = None
    net: dict[str, Any] | None = None

    def model(self) -> Model:
        """Our model, of which PyTorch trains the twin."""
        if self.net:
            spec, shape, outputs, labels = (self.net[key] for key in ("spec", "shape", "outputs", "labels"))
            return build_model(spec, "auto", tuple(shape), "classes", outputs, labels, labels > 1)
        assert self.widths
        spec = "mlp:" + "-".join(map(str, self.widths))
        return build_model(spec, "auto", self.widths[0], "classes", self.widths[-1])


def network(model: Model) -> list[list[nn.Module]]:
    """The twin's modules, layer by layer, with the start values of our own runs of `model`."""
    parameters = []
    for index, layer in enumerate(model.layers):
        flat = aligned(layer.count, np.dtype(np.float32))
        layer.initialise(flat, 0, index)
        parameters.append(layer.unpack(flat))
    twin = Twin(model, parameters, "momentum", 0.0)
    # Flat, as one would write it: a Sequential within a Sequential costs a call.
    return [list(part) if isinstance(part, nn.Sequential) else [part] for part in twin.net]


def chain(layers: list[list[nn.Module]]) -> nn.Sequential:
    """The modules of `layers`, one after the other."""
    return nn.Sequential(*[module for layer in layers for module in layer])


def criterion(out: Tensor, labels: Tensor) -> Tensor:
    """Mean loss over all predictions `out` with the classes `labels`."""
    return functional.cross_entropy(out.flatten(0, -2), labels.flatten())


def optimizer_of(parameters: Iterator[nn.Parameter], name: str) -> torch.optim.Optimizer:
    """PyTorch's fused optimizer, its fastest, for `parameters`; `name` is "momentum" or "adamw"."""
    if name == "momentum":
        return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, fused=True)
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.3, fused=True)


def samples(model: Model, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, labels and an order, in memory, for `model` and steps of `batch` samples."""
    torch.manual_seed(0)
    n, outputs = BATCHES * batch, model.layers[-1].out_shape[-1]
    if model.takes_tokens:
        x = torch.randint(0, outputs, (n, model.labels))
        return x, torch.randint(0, outputs, (n, model.labels)), torch.randperm(n)
    return torch.randn(n, model.layers[0].inputs), torch.randint(0, outputs, (n,)), torch.randperm(n)


# ---- ways to train: the modules of this rank, and a step ------------------------------------------------------------


def accumulating(net: nn.Module, pieces: int, quiet: Callable[[], Any] = nullcontext) -> Step:
    """Step of `net` in which `pieces` micro-batches add up their gradients, all but the last inside a `quiet` block."""

    def step(x: Tensor, y: Tensor) -> list[Tensor]:
        losses = []
        for n, (part, labels) in enumerate(zip(x.chunk(pieces), y.chunk(pieces), strict=True)):
            with quiet() if n < pieces - 1 else nullcontext():
                loss = criterion(net(part), labels)
                (loss / pieces).backward()
            losses.append(loss.detach())
        return losses

    return step


def data_parallel(net: nn.Sequential, rank: int, settings: Settings) -> Step:
    """Step of `net`, whole on each rank; micro-batches are divided evenly, and the last one exchanges gradients.

    `rank` is this rank, `settings` are those of the run.
    """
    ranks = settings.ranks
    parallel = DistributedDataParallel(net, gradient_as_bucket_view=True)
    step = accumulating(parallel, max(1, settings.micro_batches // ranks), parallel.no_sync)
    return lambda x, y: step(x.chunk(ranks)[rank], y.chunk(ranks)[rank])


def pipeline(
    layers: list[list[nn.Module]], model: Model, rank: int, settings: Settings
) -> tuple[list[nn.Module], Step]:
    """Modules of this rank and its step: stages of whole layers, split like our own runs by floating-point operations.

    Parameters
    ----------
    layers : list of list of Module
        Modules of each layer.
    model : Model
        Our network.
    rank : int
        This rank.
    settings : Settings
        Settings of the run.
    """
    ranks, m = settings.ranks, settings.micro_batches
    make, chunks = SCHEDULES[settings.way]
    count = ranks * chunks
    ends = [0, *accumulate(partition([layer.flops(settings.batch_size // m) for layer in model.layers], count))]
    mine = [rank + ranks * c for c in range(chunks)]
    if settings.way == "zbv":  # the second half of the chain runs back to rank 0
        mine = [rank, count - 1 - rank]
    nets: list[nn.Module] = [chain(layers[ends[s] : ends[s + 1]]) for s in mine]
    stages = [PipelineStage(net, s, count, torch.device("cpu")) for net, s in zip(nets, mine, strict=True)]
    schedule = make(stages[0] if chunks == 1 else stages, n_microbatches=m, loss_fn=criterion)
    takes, ends_here = 0 in mine, count - 1 in mine

    def step(x: Tensor, y: Tensor) -> list[Tensor]:
        losses: list[Tensor] = []
        inputs = (x,) if takes else ()
        target: dict[str, Any] = {"target": y, "losses": losses} if ends_here else {}
        schedule.step(*inputs, **target, return_outputs=False)
        return [loss.detach() for loss in losses]

    return nets, step


# ---- a run ----------------------------------------------------------------------------------------------------------


def train(rank: int, settings: Settings) -> dict[str, float]:
    """Train, check, and measure on rank `rank` with `settings`.

    Returns
    -------
    dict
        Samples a second, and the losses of the first and the last step.
    """
    torch.set_num_threads(1)
    model, batch = settings.model(), settings.batch_size
    layers = network(model)
    whole = chain(layers)
    x, y, order = samples(model, batch)

    def rows(step: int) -> Tensor:
        return order[step % BATCHES * batch : (step % BATCHES + 1) * batch]

    with torch.no_grad():
        expected = float(criterion(whole(x[rows(0)]), y[rows(0)]))
    nets: list[nn.Module] = [whole]
    if settings.ranks == 1:
        train_on = accumulating(whole, settings.micro_batches)
    elif settings.way == "ddp":
        train_on = data_parallel(whole, rank, settings)
    else:
        nets, train_on = pipeline(layers, model, rank, settings)
    parameters = [parameter for net in nets for parameter in net.parameters()]
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = optimizer_of(iter(parameters), settings.optimizer)
    meet: Callable[[], Any] = dist.barrier if settings.ranks > 1 else lambda: None
    began, losses = 0.0, []
    for step in range(settings.steps):
        if step == settings.skip:
            meet()
            began = time.perf_counter()
        here = rows(step)
        losses.append(train_on(x[here], y[here]))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    meet()
    rate = (settings.steps - settings.skip) * batch / (time.perf_counter() - began)
    same = [n for n, (new, old) in enumerate(zip(parameters, before, strict=True)) if torch.equal(new, old)]
    if same:
        raise SystemExit(f"{settings.way}: rank {rank} did not train its parameters {same}")
    return {"samples_per_s": rate} | checked(losses, expected, settings)


def checked(losses: list[list[Tensor]], expected: float, settings: Settings) -> dict[str, float]:
    """First and last loss, after a check: the first is that of one process, and the last is lower.

    Parameters
    ----------
    losses : list of list of Tensor
        Losses of the micro-batches of each step.
    expected : float
        First loss of one process.
    settings : Settings
        Settings of the run.

    Raises
    ------
    SystemExit
        The run does not train.
    """
    sums = torch.tensor([[float(sum(parts)), len(parts)] for parts in losses], dtype=torch.float64)
    if settings.ranks > 1:
        dist.all_reduce(sums)  # only the last stage has losses; with ddp every rank has its own
    means = (sums[:, 0] / sums[:, 1]).tolist()
    if not abs(means[0] - expected) < TOLERANCE:
        raise SystemExit(f"{settings.way}: first loss {means[0]}, but one process has {expected}")
    first, last = (sum(part) / BATCHES for part in (means[:BATCHES], means[-BATCHES:]))
    if settings.steps >= 2 * BATCHES and not last < first:
        raise SystemExit(f"{settings.way}: loss {first} of the first pass, {last} of the last: it does not train")
    return {"first_loss": means[0], "last_loss": means[-1], "one_process_loss": expected}


def process(rank: int, settings: Settings, port: int, out: str) -> None:
    """Program of one of several ranks.

    Parameters
    ----------
    rank : int
        This rank.
    settings : Settings
        Settings of the run.
    port : int
        Port on which the ranks meet.
    out : str
        File to which rank 0 writes the result.
    """
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=settings.ranks)
    found = train(rank, settings)
    if rank == 0:
        with open(out, "w") as file:
            json.dump(found, file)
    dist.destroy_process_group()


def main(settings: Settings) -> None:
    """Train with `settings` and print the result."""
    if settings.ranks == 1:
        found = train(0, settings)
    else:
        with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            free.close()
            out = os.path.join(folder, "found")
            mp.spawn(process, (settings, port, out), nprocs=settings.ranks)  # type: ignore[no-untyped-call]
            with open(out) as file:
                found = json.load(file)
    print(json.dumps(found | {"torch": torch.__version__}))


if __name__ == "__main__":
    main(Settings(**json.loads(sys.argv[1])))
