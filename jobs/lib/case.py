"""The case type of all comparisons: a chain of equal dense layers, a batch of each step, ranks and their speed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ringtmp.jobs.lib.ways import Way
from ringtmp.nn.model import Model, build_model

LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Case:
    """A training that every way of a comparison runs: same network, batch, optimizer and number of ranks.

    Parameters
    ----------
    name : str
        Name in tables and result files.
    ranks : int
        Ranks of the launch. A rank that only serves is one of them.
    width, layers : int
        The network is `layers` dense layers with `width` inputs and outputs each.
    batch : int
        Samples of a step.
    samples : int
        Synthetic samples of the data set, tests included.
    node_speed : str
        GFLOP/s of emulated nodes, in the form of `--node-speed`; empty: as fast as the machine is.
    jitter : float
        Bound of the relative change of each emulated action's duration, from 0 to below 1.
    message_size : str
        Largest message of servers and workers, such as "32KiB"; empty: the default.
    test_fraction : float
        Share of the samples that are kept for the test at the end.
    optimizer : str
        Name of the optimizer, such as "momentum".
    checkpoints : bool
        Whether the default checkpoints are written.
    """

    name: str
    ranks: int
    width: int
    layers: int
    batch: int
    samples: int
    node_speed: str = ""
    jitter: float = 0.0
    message_size: str = ""
    test_fraction: float = 0.01
    optimizer: str = "momentum"
    checkpoints: bool = False

    @property
    def spec(self) -> str:
        """The network, in the form of `--model`."""
        return f"mlp:{self.width}-{self.width}x{self.layers}"

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        return self.layers * (self.width * self.width + self.width)

    def model(self) -> Model:
        """The network."""
        return build_model(self.spec, "auto", (self.width,), "classes", self.width)

    def settings(self, way: Way, steps: int, **more: Any) -> dict[str, Any]:
        """Settings of a run for the trainer of a way.

        Parameters
        ----------
        way : Way
            Adds its own settings.
        steps : int
            Steps of the run.
        **more
            Settings that override all others.
        """
        found = {
            "model": self.spec,
            "batch_size": self.batch,
            "optimizer": self.optimizer,
            "data": f"synthetic:samples={self.samples},features={self.width},classes={self.width}",
            "lr": LEARNING_RATE,
            "steps": steps,
            "eval_every": 0,
            "test_fraction": self.test_fraction,
        }
        if not self.checkpoints:
            found["checkpoint_every"] = 0
        if self.node_speed:
            found |= {"node_speed": self.node_speed, "jitter": self.jitter}
        if self.message_size:
            found["message_size"] = self.message_size
        return found | dict(way.settings) | more

    def run(self, way: Way, steps: int, skip: int, **more: Any) -> dict[str, Any]:
        """A run in the form that `ringtmp.jobs.lib.launch.launch` takes.

        Parameters
        ----------
        way : Way
            Trainer and its settings.
        steps, skip : int
            Steps of the run; first steps that are left out of its rate.
        **more
            Settings that override all others.
        """
        return {"trainer": way.trainer, "train": self.settings(way, steps, **more), "skip": skip}


# ---- a chain of layers on emulated nodes ----------------------------------------------------------------------------

CHAIN_WIDTH, CHAIN_LAYERS = 32, 12  # of each node
MICRO, ROWS = 2, 4  # micro-batches for each rank, and samples of one
ACTION = 2e-3  # seconds of F of a node's layers for one micro-batch, at speed 1


def chain_on_nodes(name: str, courses: Sequence[str], jitter: float = 0.0) -> Case:
    """A chain of 12 equal layers for each of several emulated nodes.

    Parameters
    ----------
    name : str
        Name of the case.
    courses : sequence of str
        Relative speed of each node (1: not slowed) over the steps, such as "1@24:0.25" (4 times slower from step 24).
    jitter : float
        Bound of the relative change of each emulated action's duration, from 0 to below 1.
    """
    speed = 2 * ROWS * CHAIN_WIDTH * CHAIN_WIDTH * CHAIN_LAYERS / ACTION / 1e9
    scaled = []
    for course in courses:
        first, *turns = course.split("@")
        words = [f"{float(first) * speed:.6g}"]
        for turn in turns:
            when, relative = turn.split(":")
            words.append(f"{when}:{float(relative) * speed:.6g}")
        scaled.append("@".join(words))
    ranks = len(courses)
    batch = MICRO * ROWS * ranks
    return Case(
        name, ranks, CHAIN_WIDTH, CHAIN_LAYERS * ranks, batch, 4 * batch, ",".join(scaled), jitter, checkpoints=True
    )
