"""Random scenes of both simulators, from seeds, and a digest of everything that a simulation returns.

`recorded_scenes.json` holds the digests. A refactoring must not change any of them; the scenes pass every limit of
held micro-batches, so that they do not depend on defaults.
"""

import hashlib
import json
import random
from typing import Any

import numpy as np

from ringtmp.schedule.registry import build
from ringtmp.simulate.data_parallel import Exchange, simulate_data_parallel
from ringtmp.simulate.pipeline import Scene, simulate

PIPELINE_SCENES, DATA_PARALLEL_SCENES = 120, 80
_PLANS = {  # whether a plan takes several chunks
    "naive": True,
    "gpipe": True,
    "1f1b": False,
    "interleaved": True,
    "zb-h1": False,
    "zb-h2": False,
    "interleaved-zb": True,
}


def digests() -> dict[str, str]:
    """The digest of each scene, by its name."""
    found = {f"pipeline {seed}": _digest(_pipeline(seed)) for seed in range(PIPELINE_SCENES)}
    return found | {f"dp {seed}": _digest(_data_parallel(seed)) for seed in range(DATA_PARALLEL_SCENES)}


def _digest(result: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()[:16]


def _rounded(values: Any) -> str:
    """SHA-256 of `values` to nine decimals: another processor may fuse a multiplication into an addition."""
    flat = np.round(np.asarray(values, float).ravel(), 9) + 0.0
    return hashlib.sha256(flat.tobytes()).hexdigest()


def _scene(rng: random.Random) -> Scene:
    """Unequal stages, a shorter last micro-batch, W in parts, latency, bytes on links, jitter."""
    ranks, chunks, micro_batches = rng.randint(1, 12), rng.choice([1, 1, 1, 2, 3]), rng.randint(1, 40)
    stages = ranks * chunks
    seconds = np.array([_durations(rng) for _ in range(stages)])
    if rng.random() < 0.4:
        seconds[:] = seconds[0]
    sizes = np.ones(micro_batches)
    sizes[rng.randint(1, micro_batches) :] = rng.choice([0.5, 0.9])
    parts = tuple(_fractions(rng) for _ in range(stages))
    transfers = np.array([[rng.uniform(0, 2) for _ in range(2)] for _ in range(stages)])
    if rng.random() < 0.4:
        transfers = transfers[:0]
    update, latency = rng.choice([0.0, 0.01, 0.1]), rng.choice([0.0, 0.1, 1.3, 20.0])
    jitter, seed = rng.choice([0.0, 0.0, 0.1, 0.6]), rng.randrange(2**40)
    return Scene(ranks, chunks, sizes, seconds, parts, update, latency, transfers, jitter, seed)


def _durations(rng: random.Random) -> list[float]:
    """Of F, I, W and U."""
    compute = [rng.uniform(0.1, 2), rng.uniform(0.1, 2), rng.uniform(0.1, 2)]
    return [*compute, rng.choice([0, rng.uniform(0, 1)])]


def _fractions(rng: random.Random) -> tuple[float, ...]:
    parts = [rng.uniform(0.1, 1) for _ in range(rng.randint(1, 5))]
    return tuple(part / sum(parts) for part in parts)


def _pipeline(seed: int) -> dict[str, Any]:
    """A plan for each third seed, otherwise the local rule."""
    rng = random.Random(f"pipeline {seed}")
    scene = _scene(rng)
    ranks, chunks = scene.ranks, scene.chunks
    steps, plan = rng.randint(1, 9), None
    settings: dict[str, Any] = {}
    if seed % 3 == 0:
        name = rng.choice([name for name, several in _PLANS.items() if several or chunks == 1])
        plan = build(name, ranks, scene.micro_batches, chunks)
        settings |= {"lag": rng.choice([0, 0, 1]), "most": 4 * ranks}
    else:
        settings |= {"most": rng.randint(1, 6 * ranks), "w_group": rng.choice([1, 1, 2, 5])}
        settings |= {"lag": rng.choice([0, 0, 1]), "adaptive": rng.random() < 0.7}
        kind = rng.randint(0, 3)
        if kind == 0:
            settings["ahead"] = rng.choice([0.5, 1.0, 2.3])
        elif kind == 1:
            draw = [[[rng.randint(1, 6) for _ in range(chunks)] for _ in range(ranks)] for _ in range(2)]
            settings["limits"] = tuple(map(np.array, draw))
    outcome = simulate(scene, plan, steps=steps, log=True, **settings)
    assert simulate(scene, plan, steps=steps, **settings).seconds == outcome.seconds
    return {
        "seconds": _rounded(outcome.seconds),
        "busy": _rounded(outcome.busy),
        "held": _rounded(outcome.held),
        "ends": _rounded(outcome.ends),
        "actions": int(outcome.actions),
        "cap": _rounded(outcome.limits[0]),
        "limit": _rounded(outcome.limits[1]),
        "log": _rounded(outcome.log),
    }


def _data_parallel(seed: int) -> dict[str, Any]:
    """Servers for two of four seeds, colocated servers, all-reduce."""
    rng = np.random.default_rng(seed)
    layers, workers = int(rng.integers(1, 12)), int(rng.integers(1, 20))
    kind: Any = ["server", "server", "colocate", "allreduce"][seed % 4]
    sizes = np.where(rng.random(layers) < 0.2, 0.0, rng.uniform(1e4, 2e5, layers))
    sizes[rng.integers(layers)] = 5e4
    links: dict[str, Any] = {"bandwidth": float(rng.choice([1e5, 1e6, 1e7]))}
    links["latency"] = float(rng.choice([0, 1e-3, 0.3]))
    links["overhead"] = float(rng.choice([0, 2e-3]))
    links["chunk"] = float(rng.choice([2e4, 7e4, 1e9]))
    links["gather"] = float(rng.choice([0, 0, 1e5]))
    links["forward_first"] = bool(rng.integers(2))
    servers, staleness = int(rng.integers(1, 5)), int(rng.integers(-1, 4))
    if kind == "server":
        links |= {"servers": servers, "staleness": staleness}
    outcome = simulate_data_parallel(
        workers,
        rng.uniform(0.01, 0.3, (layers, 4)),
        sizes,
        Exchange(kind, **links),
        steps=int(rng.integers(1, 9)),
        micro=int(rng.integers(1, 4)),
        jitter=float(rng.choice([0, 0.3])),
        seed=int(rng.integers(1000)),
        slower={worker: float(rng.uniform(0.5, 3)) for worker in range(workers)},
    )
    fields = ("busy", "ends", "finished", "serving", "sent", "received")
    return {"seconds": _rounded(outcome.seconds)} | {name: _rounded(getattr(outcome, name)) for name in fields}
