"""Data-parallel training under the clock, against formulas worked out by hand and against a slow twin."""

from dataclasses import replace

import naive_data_parallel
import numpy as np
import pytest

from ringtmp.errors import UserError
from ringtmp.simulate.data_parallel import Exchange, cut, cut_bytes, exchange_bytes, gathered, simulate_data_parallel

RATE, LATENCY = 1e6, 1e-3
LAYER = np.array([[0.3, 0.2, 0.1, 0.05]])  # F, I, W and U
COMPUTE, UPDATE = 0.6, 0.05
KINDS = ("server", "colocate", "allreduce")


def linked(kind="server", **facts):
    return Exchange(kind, bandwidth=RATE, latency=LATENCY, **facts)


def one_layer(workers, size, exchange, **settings):
    return simulate_data_parallel(workers, LAYER, [size], exchange, **settings)


def test_one_worker():
    """With a server, compute, there, update and back; without one, nothing to exchange."""
    there = 2e5 / RATE + LATENCY
    served = one_layer(1, 2e5, linked(), steps=5)
    assert served.ends == pytest.approx((COMPUTE + 2 * there + UPDATE) * np.arange(1, 6))
    for kind in ("colocate", "allreduce"):
        assert one_layer(1, 2e5, linked(kind), steps=5).seconds == pytest.approx(5 * (COMPUTE + UPDATE))


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_links_without_limits(workers):
    """Without cost of communication a step is its compute, and the update, shared where workers serve."""
    for kind, update in (("server", UPDATE), ("colocate", UPDATE / workers), ("allreduce", UPDATE)):
        outcome = one_layer(workers, 1e6, Exchange(kind), steps=4)
        assert outcome.step_seconds == pytest.approx(COMPUTE + update)
        assert outcome.busy == pytest.approx([4 * (COMPUTE + UPDATE * (kind == "allreduce"))] * workers)


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_one_server_one_chunk(workers):
    """All gradients in, one after the other, then all weights out; from then on workers come one by one."""
    each = 2e5 / RATE
    outcome = one_layer(workers, 2e5, linked(), steps=3)
    first = COMPUTE + 2 * workers * each + 2 * LATENCY + UPDATE
    later = COMPUTE + (workers + 1) * each + 2 * LATENCY + UPDATE
    assert outcome.ends == pytest.approx(first + later * np.arange(3))


@pytest.mark.parametrize("chunks", [1, 2, 16])
def test_one_server_pipelines_chunks(chunks):
    """Bound by its link, a server needs W M / bandwidth and one chunk of it: in and out at once, 2 W M in all."""
    workers, size = 6, 4e6
    outcome = simulate_data_parallel(workers, LAYER * [0, 0, 0, 1], [size], linked(chunk=size / chunks), steps=1)
    bound = workers * size / RATE
    assert outcome.seconds == pytest.approx(bound * (1 + 1 / chunks) + 2 * LATENCY + UPDATE / chunks)


@pytest.mark.parametrize("servers", [1, 2, 4])
def test_servers_share_the_load(servers):
    """With a chunk for each: W in and W out at each server, the last of which begins k - 1 messages late."""
    workers, size = 32, 4e6
    outcome = simulate_data_parallel(workers, LAYER * 0, [size], linked(servers=servers), steps=1)
    each = size / servers / RATE
    assert outcome.seconds == pytest.approx((2 * workers + servers - 1) * each + 2 * LATENCY)
    many = simulate_data_parallel(16, LAYER * 0, [size], linked(servers=servers, chunk=size / 256), steps=4)
    assert many.step_seconds == pytest.approx(16 * size / RATE / servers, rel=0.1)


@pytest.mark.parametrize("workers", [2, 3, 8, 65])
def test_one_bucket_all_reduced(workers):
    """2 (W - 1) hops of M / W each, in every step the same."""
    hops = 2 * (workers - 1) * (LATENCY + 2e5 / workers / RATE)
    outcome = one_layer(workers, 2e5, linked("allreduce"), steps=3)
    assert outcome.ends == pytest.approx((COMPUTE + hops + UPDATE) * np.arange(1, 4))


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_one_layer_colocated(workers):
    """W - 1 shares out, an update of one, W - 1 shares out again."""
    once = (workers - 1) * 2e5 / workers / RATE + LATENCY
    outcome = one_layer(workers, 2e5, linked("colocate"), steps=3)
    assert outcome.ends == pytest.approx((COMPUTE + 2 * once + UPDATE / workers) * np.arange(1, 4))


def test_all_reduce_hides_behind_the_backward():
    """Buckets shorter than a layer's I and W: only that of layer 0, whose gradient exists last, is waited for."""
    layers, hops = 5, 2 * 3 * (LATENCY + 1e5 / 4 / RATE)
    assert hops < 0.3
    seconds = np.repeat(LAYER, layers, axis=0)
    outcome = simulate_data_parallel(4, seconds, [1e5] * layers, linked("allreduce"), steps=2)
    # The updates of layers 1 ... 4 are made meanwhile, after the backward, in the order in which sums come.
    wait = max(hops, (layers - 1) * UPDATE)
    assert outcome.ends == pytest.approx((layers * COMPUTE + wait + UPDATE) * np.arange(1, 3))


def test_weights_come_back_first_layer_first():
    """Three layers of 0.1 s an action and 1 s a message: layer 0 overtakes layer 1, and F of the next step is earlier.

    Gradients exist at 0.5, 0.7 and 0.9. Layers leave as 2, 0, 1 and are back at 2.5, 3.5, 4.5: forward until 4.7. In
    order of age they leave as 2, 1, 0: layer 0 is back at 4.5, and the forward takes until 4.8.
    """
    seconds = np.tile([0.1, 0.1, 0.1, 0.0], (3, 1))
    for first, ends in ((True, [4.5, 8.9]), (False, [4.5, 9.0])):
        exchange = Exchange(bandwidth=RATE, forward_first=first)
        outcome = simulate_data_parallel(1, seconds, [1e6] * 3, exchange, steps=2)
        assert outcome.ends == pytest.approx(ends)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_leave_after_the_last_micro_batch(kind):
    """Eight pieces of an eighth are one whole in time, since nothing leaves before the last."""
    whole = simulate_data_parallel(3, LAYER, [2e5], linked(kind), steps=3)
    pieces = simulate_data_parallel(3, LAYER / [8, 8, 8, 1], [2e5], linked(kind), steps=3, micro=8)
    assert pieces.ends == pytest.approx(whole.ends)


def test_slow_worker():
    """It sets everybody's pace under BSP, nobody's under ASP, and under SSP(s) from s steps ahead on."""
    steps, layer = 12, LAYER * [1, 1, 1, 0]
    for bound in (0, 1, 3, 11, 12, -1):
        exchange = Exchange(staleness=bound)
        outcome = simulate_data_parallel(4, layer, [1e5], exchange, steps=steps, slower={2: 5.0})
        waits = 0 if bound < 0 else (steps - bound) * 5 * COMPUTE
        assert outcome.finished[0] == pytest.approx(max(steps * COMPUTE, waits))
        assert outcome.finished[2] == pytest.approx(steps * 5 * COMPUTE)
    assert (outcome.steps / outcome.finished).sum() == pytest.approx((3 + 1 / 5) / COMPUTE)


def test_bounds_meet_at_both_ends():
    """SSP(0) is BSP: one update of a chunk in a step, in lock step; a bound that is never reached is ASP."""
    settings = {"steps": 6, "jitter": 0.4, "seed": 3, "slower": {1: 1.7}}
    seconds = np.repeat(LAYER, 3, axis=0)

    def run(bound):
        return simulate_data_parallel(4, seconds, [3e4] * 3, linked(staleness=bound, chunk=1e4), **settings)

    assert run(0).serving.sum() == pytest.approx(6 * 3 * UPDATE, rel=0.1)
    assert (np.diff(run(0).ends) > 0).all()
    for name in ("finished", "busy", "ends", "serving"):
        assert (getattr(run(6), name) == getattr(run(-1), name)).all()
    assert run(-1).finished.sum() < run(2).finished.sum() < run(0).finished.sum()


@pytest.mark.parametrize("workers", [1, 4, 16])
def test_bytes_match_the_formulas(workers):
    sizes = [2.0**20, 2.0**16, 0.0, 2.0**18]
    size, seconds = sum(sizes), np.repeat(LAYER, 4, axis=0)
    for exchange in (linked(), linked(servers=4, chunk=2**14), linked("colocate"), linked("allreduce")):
        outcome = simulate_data_parallel(workers, seconds, sizes, exchange, steps=3, jitter=0.2)
        assert outcome.sent.sum() == outcome.received.sum()
        assert outcome.link_bytes == exchange_bytes(exchange, workers, size)
        if exchange.kind == "server":
            each = 2 * workers * size / exchange.servers
            assert (outcome.sent + outcome.received)[workers:].tolist() == [each] * exchange.servers
            assert outcome.sent[:workers].tolist() == outcome.received[:workers].tolist() == [size] * workers
        else:
            assert outcome.sent.tolist() == [2 * (workers - 1) / workers * size] * workers
    assert cut_bytes(512, 1024) == 8 * 512 * 1024


def test_layers_are_gathered_and_cut():
    seconds, sizes = np.arange(20.0).reshape(5, 4), np.array([1.0, 5.0, 1.0, 1.0, 1.0])
    times, bytes_ = gathered(seconds, sizes, 3.0)
    assert bytes_.tolist() == [1, 5, 3] and times[2].tolist() == seconds[2:].sum(0).tolist()
    assert gathered(seconds, sizes, 0.0)[1].tolist() == sizes.tolist()
    layer, size, owner = cut(np.array([4.0, 0.0, 6.0]), Exchange(servers=2, chunk=2.0))
    assert (layer.tolist(), size.tolist(), owner.tolist()) == ([0, 0, 2, 2, 2], [2.0] * 5, [0, 1, 0, 1, 0])
    assert len(cut(np.array([8.0]), Exchange(servers=8))[0]) == 8  # a piece for everybody


def random_case(rng):
    layers, workers = int(rng.integers(1, 5)), int(rng.integers(1, 7))
    sizes = np.where(rng.random(layers) < 0.2, 0.0, rng.uniform(1e4, 2e5, layers))
    sizes[rng.integers(layers)] = 5e4
    exchange = Exchange(
        bandwidth=float(rng.choice([1e5, 1e6, 1e7])),
        latency=float(rng.choice([0, 1e-3, 0.3])),
        overhead=float(rng.choice([0, 2e-3])),
        chunk=float(rng.choice([2e4, 7e4, 1e9])),
        forward_first=bool(rng.integers(2)),
    )
    settings = {
        "steps": int(rng.integers(1, 5)),
        "micro": int(rng.integers(1, 4)),
        "jitter": 0.3,
        "seed": int(rng.integers(1000)),
    }
    slower = {w: float(rng.uniform(0.5, 3)) for w in range(workers)}
    return workers, rng.uniform(0.01, 0.3, (layers, 4)), sizes, exchange, settings | {"slower": slower}


def facts(workers, settings):
    return settings["steps"], settings["micro"], [settings["slower"][w] for w in range(workers)]


@pytest.mark.parametrize("case", range(60))
def test_twin_of_servers(case):
    rng = np.random.default_rng(case)
    workers, seconds, sizes, exchange, settings = random_case(rng)
    exchange = replace(exchange, servers=int(rng.integers(1, 4)), staleness=int(rng.integers(-1, 4)))
    outcome = simulate_data_parallel(workers, seconds, sizes, exchange, **settings)
    steps, micro, slower = facts(workers, settings)
    layer, size, owner = cut(sizes, exchange)
    finished, busy, ends, serving, sent, received = naive_data_parallel.serve(
        workers,
        exchange.servers,
        steps,
        micro,
        seconds,
        slower,
        layer.tolist(),
        size,
        exchange.overhead + size / exchange.bandwidth,
        seconds[layer, 3] * size / sizes[layer],
        owner.tolist(),
        exchange.latency,
        exchange.staleness,
        exchange.forward_first,
        settings["jitter"],
        settings["seed"],
    )
    assert outcome.finished == pytest.approx(finished, rel=1e-9)
    assert outcome.ends == pytest.approx(ends, rel=1e-9)
    assert outcome.busy == pytest.approx(busy) and outcome.serving == pytest.approx(serving)
    assert outcome.sent * steps == pytest.approx(sent) and outcome.received * steps == pytest.approx(received)


@pytest.mark.parametrize("case", range(60))
@pytest.mark.parametrize("kind", ["colocate", "allreduce"])
def test_twin_of_workers_among_themselves(kind, case):
    workers, seconds, sizes, exchange, settings = random_case(np.random.default_rng(1000 + case))
    exchange = replace(exchange, kind=kind)
    outcome = simulate_data_parallel(workers, seconds, sizes, exchange, **settings)
    steps, micro, slower = facts(workers, settings)
    common = (workers, steps, micro, seconds, slower, sizes, exchange.overhead, exchange.bandwidth, exchange.latency)
    draws = settings["jitter"], settings["seed"]
    if kind == "colocate":
        busy, ends, serving, sent = naive_data_parallel.colocate(*common, exchange.forward_first, *draws)
        assert outcome.serving == pytest.approx(serving)
    else:
        finished, busy, ends, sent = naive_data_parallel.all_reduce(*common, *draws)
        assert outcome.finished == pytest.approx(finished, rel=1e-9)
    assert outcome.ends == pytest.approx(ends, rel=1e-9)
    assert outcome.busy == pytest.approx(busy) and outcome.sent * steps == pytest.approx(sent)


@pytest.mark.parametrize(
    "facts",
    [{"kind": "gossip"}, {"servers": 0}, {"staleness": -2}, {"kind": "allreduce", "staleness": 1}, {"chunk": 0}],
)
def test_what_is_no_exchange(facts):
    with pytest.raises(UserError, match="exchange"):
        Exchange(**facts)


def test_what_cannot_be_simulated():
    for sizes in ([1.0, 2.0], [0.0]):
        with pytest.raises(UserError, match="exchange"):
            simulate_data_parallel(2, LAYER, sizes, Exchange())
