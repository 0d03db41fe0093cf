"""The same training run in PyTorch (eager, one thread a process): prints samples/s as JSON.

Usage: python -m jobs.bench.torch_job '{"widths": [...], "batch_size": 256, "micro_batches": 8, "steps": 40, "skip": 5,
"optimizer": "momentum", "ranks": 1}'. With `ranks` 2 or more: `torch.distributed.pipelining`, Schedule1F1B over Gloo.
"""

import json
import os
import socket
import sys
import tempfile
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B


def network(widths: list[int], first: int, last: int) -> nn.Sequential:
    """Layers `first` ... `last` - 1: dense with ReLU, the last of all without."""
    layers: list[nn.Module] = []
    for index in range(first, last):
        layers.append(nn.Linear(widths[index], widths[index + 1]))
        if index < len(widths) - 2:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def optimizer_of(model: nn.Module, name: str) -> torch.optim.Optimizer:
    """PyTorch's fused CPU kernels: its fastest."""
    if name == "momentum":
        return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.3, fused=True)


def samples(widths: list[int], batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, labels and an order, in memory."""
    torch.manual_seed(0)
    n = 8 * batch
    return torch.randn(n, widths[0]), torch.randint(0, widths[-1], (n,)), torch.randperm(n)


def alone(settings: dict[str, Any]) -> float:
    """One process; several micro-batches accumulate their gradients."""
    widths, batch, m = settings["widths"], settings["batch_size"], settings["micro_batches"]
    model = network(widths, 0, len(widths) - 1)
    optimizer = optimizer_of(model, settings["optimizer"])
    x, y, order = samples(widths, batch)
    criterion = nn.CrossEntropyLoss(reduction="sum")
    began, total = 0.0, 0.0
    for step in range(settings["steps"]):
        if step == settings["skip"]:
            began = time.perf_counter()
        rows = order[step % 8 * batch : (step % 8 + 1) * batch]
        for part in rows.chunk(m):
            loss = criterion(model(x[part]), y[part]) / batch
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (settings["steps"] - settings["skip"]) * batch / (time.perf_counter() - began)


def pipeline(rank: int, settings: dict[str, Any], port: int, out: str) -> None:
    """One rank of a 1F1B pipeline over Gloo."""
    torch.set_num_threads(1)
    widths, batch, ranks = settings["widths"], settings["batch_size"], settings["ranks"]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    layers = len(widths) - 1
    first, last = rank * layers // ranks, (rank + 1) * layers // ranks
    model = network(widths, first, last)
    optimizer = optimizer_of(model, settings["optimizer"])
    x, y, order = samples(widths, batch)
    criterion = nn.CrossEntropyLoss()
    stage = PipelineStage(model, rank, ranks, torch.device("cpu"))
    schedule = Schedule1F1B(stage, n_microbatches=settings["micro_batches"], loss_fn=criterion)
    began = 0.0
    for step in range(settings["steps"]):
        if step == settings["skip"]:
            dist.barrier()
            began = time.perf_counter()
        rows = order[step % 8 * batch : (step % 8 + 1) * batch]
        if rank == 0:
            schedule.step(x[rows])
        elif rank == ranks - 1:
            losses: list[torch.Tensor] = []
            schedule.step(target=y[rows], losses=losses)
        else:
            schedule.step()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    dist.barrier()
    if rank == 0:
        with open(out, "w") as file:
            file.write(str((settings["steps"] - settings["skip"]) * batch / (time.perf_counter() - began)))
    dist.destroy_process_group()


def main(settings: dict[str, Any]) -> None:
    """Train and print."""
    torch.set_num_threads(1)
    if settings["ranks"] == 1:
        rate = alone(settings)
    else:
        with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            free.close()
            out = os.path.join(folder, "rate")
            mp.spawn(pipeline, (settings, port, out), nprocs=settings["ranks"])  # type: ignore[no-untyped-call]
            with open(out) as file:
                rate = float(file.read())
    print(json.dumps({"samples_per_s": rate, "torch": torch.__version__}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
