"""Simulate data-parallel training with parameter servers, colocated servers or an all-reduce, to compare with the ring.

>>> seconds = np.tile([1.0, 1.0, 1.0, 0.1], (16, 1))
>>> one = Exchange("server", bandwidth=1e9, latency=20e-6)
>>> simulate_data_parallel(8, seconds, [4e6] * 16, one).step_seconds
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from ringtmp.errors import UserError
from ringtmp.kernels.compilation import prepare_kernels
from ringtmp.nn.layer import Array
from ringtmp.nn.shards import dealt, grouped
from ringtmp.simulate import all_reduce_clock, colocated_clock, server_clock
from ringtmp.simulate.pipeline import Timed
from ringtmp.simulate.worker_step import Workers

Kind = Literal["server", "colocate", "allreduce"]


@dataclass(frozen=True)
class Exchange:
    """How workers that each hold the whole model exchange gradients and weights, and over which links.

    Every node (worker or server) has one full-duplex link.

    Attributes
    ----------
    kind : {"server", "colocate", "allreduce"}
        Servers on nodes of their own; a server on every worker's node, for its share of each layer; a ring all-reduce.
    servers : int
        Number of servers of kind "server", from 1; chunks are dealt to them by bytes.
    bandwidth : float
        Of a link, in bytes a second, each way; above 0.
    latency : float
        Seconds that a message is under way.
    overhead : float
        Seconds for which each message occupies a link in addition to its bytes.
    chunk : float
        Largest message of kind "server", in bytes; larger layers are cut into equal chunks. No chunk is larger than all
        bytes divided by `servers`.
    gather : float
        Neighbouring layers are exchanged as one until they have this number of bytes (the buckets of an all-reduce).
    staleness : int
        Of kind "server". s >= 0: a worker that has pushed step t waits until all have pushed step t - s, chunk by chunk
        (0: BSP; above 0: SSP). -1: it does not wait (ASP).
    forward_first : bool
        Which of the messages that wait for a link goes first: that of the layer which the next forward pass needs first
        (P3, Jayarajan et al. 2019), or the oldest.

    Raises
    ------
    UserError
        A value is out of range, or `servers` or `staleness` is given for another kind than "server".
    """

    kind: Kind = "server"
    servers: int = 1
    bandwidth: float = np.inf
    latency: float = 0.0
    overhead: float = 0.0
    chunk: float = 4e6
    gather: float = 0.0
    staleness: int = 0
    forward_first: bool = True

    def __post_init__(self) -> None:
        """Raise `UserError` if a value is out of range."""
        if self.kind not in ("server", "colocate", "allreduce"):
            raise UserError(f"exchange: expected server, colocate or allreduce, got {self.kind!r}")
        if self.servers < 1 or self.staleness < -1:
            raise UserError("exchange: servers start at 1 and staleness at -1")
        if self.kind != "server" and (self.servers > 1 or self.staleness):
            raise UserError(f"exchange: {self.kind} has no servers of its own and no staleness")
        if not (self.bandwidth > 0 and self.chunk > 0 and min(self.latency, self.overhead, self.gather) >= 0):
            raise UserError("exchange: bandwidth and chunk must be above 0, latency, overhead and gather not below")


@dataclass(frozen=True)
class DataParallelOutcome(Timed):
    """Result of a simulation of data-parallel training.

    Attributes
    ----------
    exchange : Exchange
    steps : int
    seconds : float
        From the first action until every worker has the last step's weights.
    busy : array of float [workers]
        Seconds of F, I and W of each worker, and of U with an all-reduce.
    ends : array of float [steps]
        When the last worker has the weights of each step, in seconds.
    finished : array of float [workers]
        When each worker has the weights of its last step, in seconds.
    serving : array of float [servers]
        Seconds of updates of each server, or of each worker's server thread; empty with an all-reduce.
    sent, received : array of float [nodes]
        Bytes over each node's link per step, workers first.
    """

    exchange: Exchange
    steps: int
    seconds: float
    busy: Array
    ends: Array
    finished: Array
    serving: Array
    sent: Array
    received: Array

    @property
    def link_bytes(self) -> float:
        """Bytes over the busiest link per step, both ways together."""
        return float((self.sent + self.received).max())


def simulate_data_parallel(
    workers: int,
    seconds: Array,
    sizes: Sequence[float] | Array,
    exchange: Exchange,
    *,
    steps: int = 20,
    micro: int = 1,
    slower: Mapping[int, float] | None = None,
    jitter: float = 0.0,
    seed: int = 0,
) -> DataParallelOutcome:
    """Simulate `steps` chained steps of `workers` that each train on their share of every batch.

    Parameters
    ----------
    workers : int
        Number of workers, from 1.
    seconds : array of float [layers, 4]
        Of F, I and W of each layer for one micro-batch of a worker's share, and of the layer's U.
    sizes : sequence of float [layers]
        Bytes of each layer's parameters; 0: none.
    exchange : Exchange
    steps : int
        Optimizer steps, from 1.
    micro : int
        Micro-batches of a worker's share, from 1.
    slower : mapping from int to float, optional
        Factors of all durations, by worker; default 1.
    jitter : float
        Durations vary by a factor uniform in 1 +- `jitter`, drawn for each action of a layer; from 0 to below 1.
    seed : int
        Of the jitter, from 0.

    Returns
    -------
    DataParallelOutcome

    Raises
    ------
    UserError
        A number is below 1, `sizes` and `seconds` differ in length, or all sizes are 0.
    """
    if len(seconds) != len(sizes) or min(workers, steps, micro) < 1 or not sum(sizes) > 0:
        raise UserError("exchange: needs workers, steps, micro-batches, bytes, and seconds and bytes of every layer")
    times, held = gathered(np.asarray(seconds, float), np.asarray(sizes, float), exchange.gather)
    slowdown = np.ones(workers)
    for worker, factor in (slower or {}).items():
        slowdown[worker] = factor
    job = Workers(workers, steps, micro, times, slowdown, float(jitter), seed)
    run = {"server": _with_servers, "colocate": _colocated, "allreduce": _with_all_reduce}[exchange.kind]
    return run(job, held, exchange)


@cache
def _compile(family: str) -> None:
    """Compile a simulator, or load it from the cache, once in a process: the look-up takes longer than a small run."""
    prepare_kernels(np.float64, {family})


def _with_servers(workers: Workers, sizes: Array, exchange: Exchange) -> DataParallelOutcome:
    """Simulate servers on nodes of their own; `sizes` are bytes of layers."""
    _compile("server_clock")
    layer, size, owner = cut(sizes, exchange)
    servers = server_clock.Servers(
        number=exchange.servers,
        layer_of=layer,
        first_chunk=np.searchsorted(layer, np.arange(len(sizes) + 1)),
        sizes=size,
        link_seconds=_link_seconds(size, 1, exchange),
        update_seconds=workers.seconds[layer, 3] * size / sizes[layer],
        owner=owner,
        latency=float(exchange.latency),
        staleness=exchange.staleness,
        forward_first=exchange.forward_first,
    )
    end, steps = server_clock.serve(workers, servers), workers.steps
    return DataParallelOutcome(
        exchange=exchange,
        steps=steps,
        seconds=float(end.step_ends[-1]),
        busy=end.busy,
        ends=end.step_ends,
        finished=end.finished,
        serving=end.serving,
        sent=end.sent / steps,
        received=end.received / steps,
    )


def _colocated(workers: Workers, sizes: Array, exchange: Exchange) -> DataParallelOutcome:
    """Simulate a server on every worker's node; `sizes` are bytes of layers."""
    _compile("colocated_clock")
    part, others = sizes / workers.number, workers.number - 1
    link_seconds = np.where(sizes > 0, _link_seconds(part, others, exchange), -1.0)
    links = colocated_clock.Links(link_seconds, float(exchange.latency), exchange.forward_first)
    end = colocated_clock.colocate(workers, links)
    bytes_sent = np.full(workers.number, float(2 * others * sizes.sum() / workers.number))
    return DataParallelOutcome(
        exchange=exchange,
        steps=workers.steps,
        seconds=float(end.step_ends[-1]),
        busy=end.busy,
        ends=end.step_ends,
        finished=np.full(workers.number, end.step_ends[-1]),
        serving=end.serving,
        sent=bytes_sent,
        received=bytes_sent,
    )


def _with_all_reduce(workers: Workers, sizes: Array, exchange: Exchange) -> DataParallelOutcome:
    """Simulate a ring all-reduce; `sizes` are bytes of layers."""
    _compile("all_reduce_clock")
    part, hops = sizes / workers.number, 2 * (workers.number - 1)
    link_seconds = np.where(sizes > 0, _link_seconds(part, 1, exchange), -1.0)
    end = all_reduce_clock.all_reduce(workers, all_reduce_clock.Links(link_seconds, float(exchange.latency)))
    bytes_sent = np.full(workers.number, float(hops * sizes.sum() / workers.number))
    return DataParallelOutcome(
        exchange=exchange,
        steps=workers.steps,
        seconds=float(end.step_ends[-1]),
        busy=end.busy,
        ends=end.step_ends,
        finished=end.updated,
        serving=np.zeros(0),
        sent=bytes_sent,
        received=bytes_sent,
    )


def gathered(seconds: Array, sizes: Array, least: float) -> tuple[Array, Array]:
    """Group neighbouring layers, from the last one backwards, until each group has enough bytes.

    Parameters
    ----------
    seconds : array of float [layers, 4]
    sizes : array of float [layers]
        Bytes.
    least : float
        Bytes of a group; 0 leaves the layers as they are.

    Returns
    -------
    tuple
        Seconds [groups, 4] and bytes [groups], summed over each group.
    """
    starts = grouped(sizes.tolist(), least)
    return np.add.reduceat(seconds, starts, axis=0), np.add.reduceat(sizes, starts)


def cut(sizes: Array, exchange: Exchange) -> tuple[Array, Array, Array]:
    """Cut layers into chunks and deal them to servers, each to the server with the fewest bytes so far.

    Parameters
    ----------
    sizes : array of float [layers]
        Bytes.
    exchange : Exchange
        Its `chunk` and `servers` are used; no chunk is larger than all bytes divided by `servers`.

    Returns
    -------
    tuple
        Layer, bytes and server of each chunk, in the order of the forward pass.
    """
    most = min(exchange.chunk, sizes.sum() / exchange.servers)
    counts = np.ceil(sizes / most - 1e-9).astype(np.int64)
    layer = np.repeat(np.arange(len(sizes)), counts)
    size = sizes[layer] / counts[layer]
    return layer, size, np.array(dealt(size.tolist(), exchange.servers), np.int64)


def _link_seconds(size: Array, messages: int, exchange: Exchange) -> Array:
    """Seconds for which `messages` messages of `size` bytes occupy a link."""
    return messages * (exchange.overhead + size / exchange.bandwidth)


def exchange_bytes(exchange: Exchange, workers: int, size: float) -> float:
    """Bytes over the busiest link per step, both ways together, by formula.

    With W workers and M bytes of parameters: 2 W M / k over the link of each of k servers, 2 M over that of a worker;
    with an all-reduce or colocated servers 2 (W - 1) / W M out of each node, and as many in.

    Parameters
    ----------
    exchange : Exchange
    workers : int
    size : float
        Bytes of all parameters.
    """
    if exchange.kind == "server":
        return max(2 * workers * size / exchange.servers, 2 * size)
    return 4 * (workers - 1) / workers * size


def cut_bytes(batch: int, width: int, item: int = 4) -> int:
    """Bytes over one link of the ring per step: activations to the right, their gradients to the left.

    Parameters
    ----------
    batch : int
        Samples of a batch.
    width : int
        Numbers of one sample's activation at the boundary.
    item : int
        Bytes of a number.
    """
    return 2 * item * batch * width
