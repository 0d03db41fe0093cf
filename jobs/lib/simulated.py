"""Simulated steps far beyond one machine: the ring, servers and all-reduce on any number of nodes.

The time of a computation is its operations at a given speed, whatever the number of rows. Each node has one full-duplex
link, which the ring's two directions share. Whether a worker's memory can hold the model is not checked.
"""

from dataclasses import dataclass, replace

import numpy as np

from ringtmp.emulate.nodes import UPDATE_FLOPS
from ringtmp.jobs.lib.predict import exchange_kind
from ringtmp.jobs.lib.ways import WAYS, Way, several_servers
from ringtmp.simulate.data_parallel import Exchange, cut_bytes, exchange_bytes, simulate_data_parallel
from ringtmp.simulate.pipeline import Scene, Timed, simulate

ITEM = 4  # bytes of a number
TRIED, MOST_ACTIONS = 1_000_000, 101_000_000  # of a step: for every number of micro-batches tried, and for the only one
MOST_MESSAGES = 1_100_000  # of a step with servers, one way; four times as many were never faster by more than 2 %
SERVERS = several_servers("p/8")
PIECES = (4096, 1024, 256, 64, 16, 4, 1)  # that the model is sent in


@dataclass(frozen=True)
class Machine:
    """A dense network and the machine that it is trained on.

    Attributes
    ----------
    width, layers : int
        The network is `layers` products with a `width` x `width` matrix.
    gflops : float
        GFLOP/s of a node.
    bandwidth : float
        Bytes a second of a node's link, each way.
    latency, message, action : float
        Seconds that a message travels, seconds that each message occupies a link besides its bytes, and seconds that a
        rank of the ring spends besides each action.
    jitter : float
        Bound of the relative change of each action's duration, from 0 to below 1.
    """

    width: int = 1024
    layers: int = 4096
    gflops: float = 100.0
    bandwidth: float = 1.25e9
    latency: float = 20e-6
    message: float = 2e-6
    action: float = 4e-6
    jitter: float = 0.0

    @property
    def layer_bytes(self) -> int:
        """Bytes of a layer's parameters."""
        return ITEM * self.width**2

    def seconds(self, rows: float) -> list[float]:
        """Seconds of F, I and W of one layer for `rows` rows, and of its U."""
        product = 2 * rows * self.width**2 / self.gflops / 1e9
        return [product, product, product, UPDATE_FLOPS * self.width**2 / self.gflops / 1e9]

    def ideal(self, nodes: int, batch: int) -> float:
        """Seconds of a step of `batch` samples if `nodes` shared its F, I and W evenly and nothing else took time."""
        return self.layers * sum(self.seconds(batch / nodes)[:3])


@dataclass(frozen=True)
class Row:
    """A simulated step of one way.

    Attributes
    ----------
    scaling : str
        "weak" or "strong", or the name of what is swept.
    nodes, batch : int
        Nodes, and samples of a step.
    name : str
        Label of the way.
    step_seconds : float
        Seconds of a step.
    idle : float
        Share of a step in which ranks or workers do not compute.
    link_bytes : float
        Bytes over the busiest link in each step.
    tuned : int
        Micro-batches of the ring; pieces in which another way sends the model.
    """

    scaling: str
    nodes: int
    batch: int
    name: str
    step_seconds: float
    idle: float
    link_bytes: float
    tuned: int


def chained(outcome: Timed) -> tuple[float, float]:
    """Seconds of a step of `outcome` after the first one, and its share in which workers or ranks do not compute."""
    step = float(outcome.ends[-1] - outcome.ends[0]) / (len(outcome.ends) - 1)
    return step, max(0.0, 1.0 - float(outcome.busy.mean()) / outcome.steps / step)


def ring(machine: Machine, p: int, batch: int, micro_batches: int) -> tuple[float, float, float]:
    """Seconds of a step, idle share and bytes of a node's link, for layers divided evenly and the local rule.

    Parameters
    ----------
    machine : Machine
        Network and nodes.
    p : int
        Ranks; divides the layers.
    batch, micro_batches : int
        Samples and micro-batches of a step.
    """
    layers, rows = machine.layers // p, batch / micro_batches
    # A node sends activations to the right and gradients to the left over one link: each takes half of it. Of two
    # nodes each sends one way alone.
    sent = min(2, p - 1) * (machine.message + ITEM * rows * machine.width / machine.bandwidth)
    scene = Scene(
        p,
        1,
        np.ones(micro_batches),
        np.tile(layers * np.array(machine.seconds(rows)), (p, 1)),
        ((1 / layers,) * layers,) * p,
        overhead=machine.action,
        latency=machine.latency,
        transfer=np.full((p, 2), sent),
        jitter=machine.jitter,
    )
    steps = max(2, min(10, 20_000_000 // (3 * p * micro_batches)))
    return *chained(simulate(scene, steps=steps)), 2 * cut_bytes(batch, machine.width, ITEM)


def best_ring(machine: Machine, p: int, batch: int, ratio: int) -> tuple[Row, int]:
    """Simulate the ring with several numbers of micro-batches.

    Parameters
    ----------
    machine : Machine
        Network and nodes.
    p : int
        Ranks.
    batch : int
        Samples of a step.
    ratio : int
        Most micro-batches for each rank if only one number of them is simulated.

    Returns
    -------
    Row, int
        The fastest of those simulated, and its micro-batches for each rank. Where several would take too long, only
        the largest number is simulated.
    """
    able = [n for n in (1, 2, 4, 8) if 3 * p * p * n <= MOST_ACTIONS and n <= ratio]
    ratios = [n for n in (1, 2, 4, 8) if 3 * p * p * n <= TRIED] or able[-1:]
    tried = {}
    for n in ratios:
        micro_batches = min(n * p, batch)
        if micro_batches not in tried:
            tried[micro_batches] = (*ring(machine, p, batch, micro_batches), n)
    micro_batches, (step, idle, sent, n) = min(tried.items(), key=lambda each: each[1][0])
    return Row("", p, batch, "ring", step, idle, sent, micro_batches), n


def exchanges(machine: Machine, p: int) -> dict[str, tuple[int, Exchange]]:
    """Number of workers and exchange of each data-parallel way on `p` nodes of `machine`, by label."""
    links = Exchange(bandwidth=machine.bandwidth, latency=machine.latency, overhead=machine.message)
    many = max(1, p // 8)
    return {
        WAYS["bsp"].label: (p - 1, links),
        SERVERS.label: (p - many, replace(links, servers=many)),
        WAYS["colocated"].label: (p, replace(links, kind="colocate")),
        WAYS["allreduce"].label: (p, replace(links, kind="allreduce")),
    }


def data_parallel(machine: Machine, workers: int, batch: int, exchange: Exchange, steps: int) -> Timed:
    """Simulate workers that share a batch evenly, each with the whole network, and their exchange.

    Parameters
    ----------
    machine : Machine
        Network and nodes.
    workers : int
        Number of workers.
    batch : int
        Samples of a step.
    exchange : Exchange
        How gradients are exchanged.
    steps : int
        Steps to simulate.
    """
    seconds, sizes = np.tile(machine.seconds(batch / workers), (machine.layers, 1)), [machine.layer_bytes]
    return simulate_data_parallel(
        workers, seconds, sizes * machine.layers, exchange, steps=steps, jitter=machine.jitter
    )


def rivals(machine: Machine, p: int, batch: int) -> list[Row]:
    """A row for each data-parallel way, with the number of pieces that makes it fastest among those tried.

    Parameters
    ----------
    machine : Machine
        Network and nodes.
    p : int
        Nodes.
    batch : int
        Samples of a step.
    """
    rows, total = [], machine.layer_bytes * machine.layers
    for name, (workers, exchange) in exchanges(machine, p).items():
        tried: list[Row] = []
        for count in PIECES:
            served, messages = exchange.kind == "server", workers * count
            # All-reduce and colocated servers cut each piece once more, into one part for each worker.
            if messages > MOST_MESSAGES // (1 if served else 4) or not (served or count <= machine.layers):
                continue
            piece = total / count
            tuned = replace(exchange, chunk=piece, gather=piece)
            steps = 2 if 4 * messages > MOST_MESSAGES else 3
            outcome = data_parallel(machine, workers, batch, tuned, steps)
            tried.append(Row("", p, batch, name, *chained(outcome), exchange_bytes(tuned, workers, total), count))
        rows.append(min(tried, key=lambda row: row.step_seconds))
    return rows


def paced_exchange(machine: Machine, way: Way, nodes: int, batch: int, chunk: float) -> float:
    """Seconds of a step of a data-parallel way with at most one server.

    Parameters
    ----------
    machine : Machine
        Network and nodes.
    way : Way
        The way.
    nodes : int
        Nodes, the server included.
    batch : int
        Samples of a step.
    chunk : float
        Largest message, in bytes.
    """
    exchange = Exchange(
        exchange_kind(way),
        bandwidth=machine.bandwidth,
        latency=machine.latency,
        overhead=machine.message,
        chunk=chunk,
        gather=chunk / 4,
        staleness=way.settings.get("staleness", 0),
    )
    return chained(data_parallel(machine, nodes - way.serves, batch, exchange, 12))[0]
