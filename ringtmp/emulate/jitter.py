"""Jitter of emulated and simulated nodes: one reproducible factor for each action.

The factor depends on seed, stage, kind and number of the action alone, so an emulated node and the simulators draw the
same one, whatever the order in which actions run.
"""

import numpy as np

from ringtmp.kernels._jit import jit
from ringtmp.kernels.compilation import kernel


@jit
def uniform(seed: int, stage: int, kind: int, number: int) -> float:
    """A pseudo-random number in [0, 1) for one action (SplitMix64, Steele et al. 2014).

    Parameters
    ----------
    seed : int
        Seed of the run, 0 or more.
    stage : int
        Stage along the chain of layers; in a data-parallel simulation worker x layers + layer.
    kind : int
        0 to 4, the numbers of F, I, W, U and B in `ringtmp.action_kinds`.
    number : int
        Micro-batch of the action, counted on from step to step; of an update the step.
    """
    x = np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(stage * 8 + kind + 1)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9) + np.uint64(number)
    for _ in range(2):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return np.float64(x >> np.uint64(11)) / 9007199254740992.0


@kernel("jitter", 0.5, 0, 0, 0, 0)
def stretch(jitter: float, seed: int, stage: int, kind: int, number: int) -> float:
    """Factor of an action's duration: uniform in 1 - `jitter` ... 1 + `jitter`.

    Parameters
    ----------
    jitter : float
        From 0 to below 1; 0 gives exactly 1.
    seed, stage, kind, number : int
        The action; `uniform` explains them.
    """
    return 1.0 if jitter == 0.0 else 1.0 + jitter * (2.0 * uniform(seed, stage, kind, number) - 1.0)
