"""The ring's rivals under the same clock: data-parallel workers with parameter servers, or with an all-reduce.

>>> seconds = np.tile([1.0, 1.0, 1.0, 0.1], (16, 1))
>>> one = Exchange("server", bandwidth=1e9, latency=20e-6)
>>> simulate_data_parallel(8, seconds, [4e6] * 16, one).step_seconds
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kernels.registry import compile_all
from ringtmp.errors import UserError
from ringtmp.nn.layer import Array
from ringtmp.nn.shards import dealt, grouped
from ringtmp.simulate import all_reduce_clock, colocated_clock, server_clock
from ringtmp.simulate.pipeline import Timed
from ringtmp.simulate.worker_step import Workers

Kind = Literal["server", "colocate", "allreduce"]


@dataclass(frozen=True)
class Exchange:
    """How workers that each hold the whole model come to new weights, and over which links.

    Every node, worker or server, has one full-duplex link.

    Attributes
    ----------
    kind : {"server", "colocate", "allreduce"}
        Servers on nodes of their own; every worker the server of its share of each layer; or a ring all-reduce.
    servers : int
        Of kind "server"; chunks are dealt to them by bytes.
    bandwidth : float
        Bytes a second, each way.
    latency : float
        Seconds a message is under way.
    overhead : float
        Seconds that each message takes a link beside its bytes.
    chunk : float
        Most bytes of a message of kind "server"; larger layers are cut into equal chunks, and if servers are many, so
        small that every server gets one.
    gather : float
        Neighbouring layers go together until they have so many bytes (buckets, as all-reduces know them).
    staleness : int
        Of kind "server". s >= 0: a worker that has pushed step t waits until all have pushed step t - s (0: BSP, above:
        SSP), chunk by chunk; -1: for nobody (ASP).
    forward_first : bool
        Whether a link takes, of what waits for it, the layer that the next forward needs first (as P3, Jayarajan et
        al. 2019), or what has waited longest.
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
        """Raise `UserError` if this is no exchange."""
        if self.kind not in ("server", "colocate", "allreduce"):
            raise UserError(f"exchange: expected server, colocate or allreduce, got {self.kind!r}")
        if self.servers < 1 or self.staleness < -1:
            raise UserError("exchange: servers start at 1 and staleness at -1")
        if self.kind != "server" and (self.servers > 1 or self.staleness):
            raise UserError(f"exchange: {self.kind} has no servers of its own and no staleness")
        if not (self.bandwidth > 0 and self.chunk > 0 and min(self.latency, self.overhead, self.gather) >= 0):
            raise UserError("exchange: bandwidth and chunk must be above 0, latency, overhead and gather not below")


@dataclass(frozen=True)
class ShareOutcome(Timed):
    """What came of a simulation of data-parallel training.

    Attributes
    ----------
    exchange : Exchange
    steps : int
    seconds : float
        From the first action until every worker has the last step's weights.
    busy : array of float [workers]
        Seconds of F, I and W, and with an all-reduce of U.
    ends : array of float [steps]
        When the last worker had the weights of each step.
    finished : array of float [workers]
        When each worker had the weights of its last step.
    serving : array of float [servers]
        Seconds of updates of each server; of the workers' server threads if they are the servers.
    sent, received : array of float [nodes]
        Bytes over each node's link in a step, workers first.
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
        """Bytes over the busiest link in a step, both ways together."""
        return float((self.sent + self.received).max())

    @property
    def updates_per_second(self) -> float:
        """Gradients of one worker's share made per second by all: what asynchronous workers gain."""
        return float((self.steps / self.finished).sum())


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
) -> ShareOutcome:
    """Run `steps` chained steps of `workers` that each train on their share of every batch.

    Parameters
    ----------
    workers : int
    seconds : array of float [layers, 4]
        Of F, I and W of each layer for one micro-batch of a worker's share, and of U.
    sizes : sequence of float [layers]
        Bytes of each layer's parameters.
    exchange : Exchange
    steps : int
    micro : int
        Micro-batches of a worker's share.
    slower : mapping from int to float, optional
        Workers that take so many times as long.
    jitter : float
        Durations vary by a factor uniform in 1 +- jitter, drawn for each layer's action.
    seed : int

    Raises
    ------
    UserError
        A layer too many or too few in `sizes`, or no bytes at all.
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


def _with_servers(workers: Workers, sizes: Array, exchange: Exchange) -> ShareOutcome:
    """Simulate servers on nodes of their own; `sizes` are bytes of layers."""
    compile_all(np.float64, {"server_clock"})
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
    return ShareOutcome(
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


def _colocated(workers: Workers, sizes: Array, exchange: Exchange) -> ShareOutcome:
    """Simulate a server on every worker's node; `sizes` are bytes of layers."""
    compile_all(np.float64, {"colocated_clock"})
    part, others = sizes / workers.number, workers.number - 1
    link_seconds = np.where(sizes > 0, _link_seconds(part, others, exchange), -1.0)
    links = colocated_clock.Links(link_seconds, float(exchange.latency), exchange.forward_first)
    end = colocated_clock.colocate(workers, links)
    bytes_sent = np.full(workers.number, float(2 * others * sizes.sum() / workers.number))
    return ShareOutcome(
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


def _with_all_reduce(workers: Workers, sizes: Array, exchange: Exchange) -> ShareOutcome:
    """Simulate a ring all-reduce; `sizes` are bytes of layers."""
    compile_all(np.float64, {"all_reduce_clock"})
    part, hops = sizes / workers.number, 2 * (workers.number - 1)
    link_seconds = np.where(sizes > 0, _link_seconds(part, 1, exchange), -1.0)
    end = all_reduce_clock.all_reduce(workers, all_reduce_clock.Links(link_seconds, float(exchange.latency)))
    bytes_sent = np.full(workers.number, float(hops * sizes.sum() / workers.number))
    return ShareOutcome(
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
    """Layers put together, from the last one backwards, until each group has `least` bytes: seconds and bytes."""
    starts = grouped(sizes.tolist(), least)
    return np.add.reduceat(seconds, starts, axis=0), np.add.reduceat(sizes, starts)


def cut(sizes: Array, exchange: Exchange) -> tuple[Array, Array, Array]:
    """The chunks of layers of so many bytes, in the order of the forward: their layers, bytes and servers.

    Each goes to the server with the fewest bytes so far; none is larger than a server's part of all bytes.
    """
    most = min(exchange.chunk, sizes.sum() / exchange.servers)
    counts = np.ceil(sizes / most - 1e-9).astype(np.int64)
    layer = np.repeat(np.arange(len(sizes)), counts)
    size = sizes[layer] / counts[layer]
    return layer, size, np.array(dealt(size.tolist(), exchange.servers), np.int64)


def _link_seconds(size: Array, messages: int, exchange: Exchange) -> Array:
    """Seconds that so many messages of a size take a link."""
    return messages * (exchange.overhead + size / exchange.bandwidth)


def exchange_bytes(exchange: Exchange, workers: int, size: float) -> float:
    """Bytes over the busiest link in a step by the formula, both ways together; `size`: of all parameters.

    2 W M for one server and its k-th part for k; over a worker's link the same both ways, for an all-reduce as for
    workers that serve: 2 (W - 1) / W M out, and as much in.
    """
    if exchange.kind == "server":
        return max(2 * workers * size / exchange.servers, 2 * size)
    return 4 * (workers - 1) / workers * size


def cut_bytes(batch: int, width: int, item: int = 4) -> int:
    """Bytes over one cut of the ring in a step: activations to the right, their gradients back."""
    return 2 * item * batch * width
