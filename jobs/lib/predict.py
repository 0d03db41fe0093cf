"""Simulated seconds of a step, for the cases and ways that real runs measure beside it."""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from ringtmp.config.units import parse_bytes
from ringtmp.emulate import node_speed
from ringtmp.emulate.nodes import nominal
from ringtmp.jobs.lib.case import Case
from ringtmp.jobs.lib.ways import Way
from ringtmp.nn.optimizers import Optimizer
from ringtmp.simulate import planner
from ringtmp.simulate.data_parallel import Exchange, simulate_data_parallel

SHARED = 2  # cuts of a ring whose messages share the link of a host inside the ring


@dataclass(frozen=True)
class Link:
    """A link between two hosts.

    Parameters
    ----------
    bandwidth : float
        Bytes a second that messages get while both directions are in use.
    latency : float
        Seconds that a small message is under way.
    """

    bandwidth: float
    latency: float


def exchange_kind(way: Way) -> Literal["server", "colocate", "allreduce"]:
    """How the data-parallel way `way` exchanges gradients: a `kind` of `ringtmp.simulate.data_parallel.Exchange`."""
    if way.settings.get("consistency") == "allreduce":
        return "allreduce"
    return "server" if way.serves else "colocate"


@cache
def predict(case: Case, way: Way, link: Link, micro_batches: int, shared: int = SHARED) -> float:
    """Simulated seconds of a step, once steps overlap.

    Parameters
    ----------
    case : Case
        Its `node_speed` must be one number (GFLOP/s of every node), its `message_size` given.
    way : Way
        The ring, or a data-parallel way with at most one server.
    link : Link
        Link of each host.
    micro_batches : int
        Micro-batches of the ring.
    shared : int
        Cuts of the ring between which a link is divided evenly; 1: each cut has a link.
    """
    model, gflops = case.model(), float(case.node_speed)
    if way.trainer == "ring":
        problem = planner.Problem(
            model,
            case.batch,
            np.dtype(np.float32),
            Optimizer(case.optimizer),
            case.ranks,
            node_speed.costs_paced(model),
            link.latency,
            link.bandwidth / shared,
            (gflops,) * case.ranks,
            whole=True,
        )
        return planner.run(problem, planner.RULE, micro_batches)[0].step_seconds
    workers, chunk = case.ranks - way.serves, parse_bytes(case.message_size, "message_size")
    exchange = Exchange(
        exchange_kind(way), bandwidth=link.bandwidth, latency=link.latency, chunk=chunk, gather=chunk / 4
    )
    costs = [nominal(model, layer, case.batch // workers, gflops) for layer in range(case.layers)]
    seconds = np.array([[one, one, one, update] for one, update in costs])
    sizes = [4.0 * layer.count for layer in model.layers]
    return simulate_data_parallel(workers, seconds, sizes, exchange, steps=12).step_seconds
