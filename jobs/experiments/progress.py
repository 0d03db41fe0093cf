"""Progress per iteration: the loss against samples and updates, of parameter servers and rings, synchronous or not.

Usage: ringtmp experiment progress [--quick] [--ranks 8] [--data FOLDER --model mlp:784-128x7-10 --out
FOLDER]

All ways train the same network from the same start values on the same batches in the same order, on as many ranks:
`ps.train` with bsp, ssp (staleness 3) and asp, rank 0 serving all others; the ring in ready mode, which is synchronous;
and the ring that does not wait for updates: PipeDream, with as many micro-batches as ranks like the ring before, and
with one (m=1: batches go round whole, as published, and weights are up to p - 1 updates old), and 2BW. Real runs over
MPI on emulated nodes, all equal, whose actions vary by `--jitter`: a worker's step takes `--milliseconds`, and a node
of the ring is as fast. On fewer cores than ranks the scheduler of the machine would otherwise decide in which order
gradients come; with it the machine decides only that order, and no loss depends on durations.

The learning rate is constant, and tuned for each way with the same budget: every rate of one grid with every one of
the same tuning seeds, and the rate with the least mean of the training loss over the last third of the epochs is taken
(a run whose loss becomes nan counts as infinite). Other seeds are then trained with it. Momentum is 0.9 an update for
every way, so that an asp of 7 workers forgets 7 times as fast; there is no weight decay, which would count once an
update. How many updates there are, and how old the weights of their gradients were, is read from traces.

The loss of a step is that on its own samples, before it, with the weights of the ranks that computed it. Tests come
every second epoch, since the PipeDream ring must run dry for each; in asp and ssp every worker tests its share of the
test samples with its own newest weights. Prints the table, writes results/progress.h5 and
jobs/figures/progress.png.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ringtmp.analysis import open_run
from ringtmp.analysis.reader import staleness
from ringtmp.data.dataset import open_data
from ringtmp.errors import UserError
from ringtmp.jobs.experiments import progress_figure
from ringtmp.jobs.lib.compare import quartiles
from ringtmp.jobs.lib.experiment import Claim, Experiment, Table, experiment
from ringtmp.jobs.lib.launch import LaunchFailed, launch
from ringtmp.jobs.lib.page import Page
from ringtmp.jobs.lib.provenance import provenance
from ringtmp.jobs.lib.ways import Way, chosen
from ringtmp.nn.model import build_model

WINDOW = 10  # steps over which a loss is averaged before it is compared with a target
PER_LAUNCH = 20  # runs of one mpirun
GRID = {"momentum": 2e-4, "sgd": 2e-3, "adam": 4e-5, "adamw": 4e-5}  # the least learning rate that is tried
FACTOR, RATES = 2.5, 6  # to the next one, and how many


WAYS = chosen("bsp", "ssp", "asp", "ring", "pipedream", "pipedream-1", "2bw")
BSP, RING = "server bsp", "ring"
Trial = tuple[Way, float, int]  # with a learning rate and a seed


@dataclass(frozen=True)
class Setting:
    """Settings that all ways share."""

    ranks: int  # of a run; a server is one of them
    data: str  # value of --data
    model: str  # value of --model
    batch: int  # samples of a step
    optimizer: str  # name of the optimizer
    epochs: int  # of a run
    tail: int  # last epochs, whose loss is judged
    test_every: int  # epochs between two tests
    milliseconds: float  # duration of a worker's step on an emulated node
    jitter: float  # bound of the relative change of each action's duration
    rates: list[float]  # learning rates that are tried
    tuning_seeds: list[int]  # of the runs that choose the learning rate
    seeds: list[int]  # of the runs that are compared
    targets: list[float]  # training losses until which steps are counted
    window: int = WINDOW  # steps over which a loss is averaged
    steps_per_epoch: int = field(init=False)
    pace: float = field(init=False)  # GFLOP/s of a node

    def __post_init__(self) -> None:
        info = open_data(self.data, dtype=np.dtype(np.float32)).info
        model = build_model(self.model, "auto", info.sample_shape, info.target, info.outputs)
        rows = self.batch / (self.ranks - 1)
        flops = sum(layer.flops(1) for layer in model.layers) * rows
        object.__setattr__(self, "steps_per_epoch", info.n_train // self.batch)
        object.__setattr__(self, "pace", float(f"{flops / self.milliseconds / 1e6:.3g}"))

    def run(self, way: Way, rate: float, seed: int, trace: bool) -> dict[str, Any]:
        """Settings of a run of `way` with learning rate `rate` and seed `seed`, with or without `trace`."""
        return {
            "data": self.data,
            "model": self.model,
            "batch_size": self.batch,
            "micro_batches": self.ranks,
            "optimizer": self.optimizer,
            "weight_decay": 0.0,
            "lr_schedule": "constant",
            "epochs": self.epochs,
            "eval_every": self.test_every * self.steps_per_epoch,
            "checkpoint_every": 0,
            "node_speed": str(self.pace),
            "jitter": self.jitter,
            "lr": rate,
            "seed": seed,
            "trace": trace,
            "worker_timeout": 600.0,
            **way.settings,
        }


# ---- runs -----------------------------------------------------------------------------------------------------------


def train_each(setting: Setting, tried: Sequence[Trial], trace: bool) -> Iterator[dict[str, Any]]:
    """Train each of `tried` (ways of one program), several in one launch; yield their results. `trace`: write traces.

    A loss of nan ends the whole launch; the runs after that one get another.
    """
    with tempfile.TemporaryDirectory() as out:
        folders = [Path(out) / str(n) for n in range(len(tried))]
        first = 0
        while first < len(tried):
            last, failed = min(first + PER_LAUNCH, len(tried)), False
            runs = [setting.run(*tried[n], trace) | {"out": out, "name": folders[n].name} for n in range(first, last)]
            try:
                launch(setting.ranks, [{"trainer": tried[0][0].trainer, "train": run} for run in runs])
            except LaunchFailed:
                begun = [n for n in range(first, last) if folders[n].exists()]
                if not begun or not diverged(folders[begun[-1]]):
                    raise
                last, failed = begun[-1] + 1, True
            for n in range(first, last):
                way, rate, seed = tried[n]
                if failed and n == last - 1:  # its history has not been written to the end
                    found: dict[str, Any] = {"train_loss": inf, "loss": [], "tests": []}
                else:
                    found = read(folders[n], trace, setting)
                yield {"way": way.label, "lr": rate, "seed": seed, **found}
            first = last


def diverged(folder: Path) -> bool:
    """Whether the run in `folder` ended because its loss was no number."""
    try:
        status = open_run(folder).status
    except (UserError, OSError):  # it had not begun
        return False
    return status["state"] == "failed" and "the loss became" in status.get("error", "")


def read(folder: Path, trace: bool, setting: Setting) -> dict[str, Any]:
    """Results of the run in `folder`: losses, and with a `trace` updates and staleness."""
    run = open_run(folder)
    history = run.history()
    steps, tests = (history[history["kind"] == kind].sort_values("step") for kind in ("train", "test"))
    last = steps["loss"].tail(setting.tail * setting.steps_per_epoch)
    found: dict[str, Any] = {
        "train_loss": float(last.mean()),
        "loss": steps["loss"].tolist(),
        "tests": tests[["step", "loss", "score"]].to_numpy().tolist(),
        "seconds": float(history["seconds"].max()),
    }
    if trace:
        events = run.events()
        made, old = events[(events["kind"] == "U") & (events["version"] >= 0)], ages(events)
        found |= {
            "updates": float(made.groupby("stage")["version"].nunique().mean()) / len(steps),
            "staleness": float(old.mean()),
            "oldest": int(old.max()),
        }
    return found


def ages(events: pd.DataFrame) -> pd.Series:
    """Number of updates by which the weights of each gradient were behind: of a worker's share, or of a micro-batch.

    `events` are those of a trace. `staleness` gives the age of the oldest micro-batch of an update of the ring; with
    PipeDream the micro-batches of an update differ.
    """
    known = events[events["version"] >= 0]
    forwards = known[known["kind"] == "F"]
    if forwards.empty:  # workers do not note versions, servers do
        return staleness(events)["staleness"]
    made = known[known["kind"] == "U"].groupby(["stage", "step"], as_index=False)["version"].max()
    both = forwards.merge(made, on=["stage", "step"], suffixes=("", "_made"))
    return both["version_made"] - 1 - both["version"]


# ---- what is made of them -------------------------------------------------------------------------------------------


def best_rate(trials: Sequence[dict[str, Any]]) -> float:
    """The learning rate whose runs, among `trials`, have the least mean loss; a diverged run has an infinite one."""
    means: dict[float, float] = {}
    for rate in dict.fromkeys(trial["lr"] for trial in trials):
        means[rate] = float(np.mean([trial["train_loss"] for trial in trials if trial["lr"] == rate]))
    best = min(means, key=lambda rate: means[rate])
    if not isfinite(means[best]):
        raise SystemExit("the loss became nan with every learning rate; give smaller ones (--rates)")
    return best


def steps_to(losses: Sequence[float], target: float, window: int = WINDOW) -> float:
    """Steps until the mean of the last `window` of `losses` was first at most `target`; infinite if never."""
    if len(losses) < window:
        return inf
    means = np.convolve(np.asarray(losses, float), np.ones(window), "valid") / window
    reached = np.flatnonzero(means <= target)
    return float(reached[0] + window) if len(reached) else inf


def beyond(mine: Sequence[float], theirs: Sequence[float]) -> int:
    """1 or -1 if the values `mine` are more or less than `theirs` beyond the spread, else 0.

    The quartiles must not overlap, and the comparison must be the same for every seed.
    """
    (_, low, high), (_, other_low, other_high) = quartiles(mine), quartiles(theirs)
    pairs = list(zip(mine, theirs, strict=True))
    if low > other_high and all(a > b for a, b in pairs):
        return 1
    return -1 if high < other_low and all(a < b for a, b in pairs) else 0


def measures(setting: dict[str, Any], runs: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Measures of each of `runs` of one way under `setting`: losses, test error, and samples to each target."""
    found = {
        "train_loss": [run["train_loss"] for run in runs],
        "test_loss": [run["tests"][-1][1] if isfinite(run["train_loss"]) else inf for run in runs],
        "test_error": [1 - run["tests"][-1][2] if isfinite(run["train_loss"]) else 1.0 for run in runs],
    }
    for target in setting["targets"]:
        steps = [steps_to(run["loss"], target, setting["window"]) for run in runs]
        found[f"samples to {target:g}"] = [step * setting["batch"] for step in steps]
    return found


def tabulate(setting: dict[str, Any], rates: dict[str, float], runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each way: median and quartiles over seeds of all measures, and comparisons with the other ways.

    `rates` holds the learning rate of each way, by label; `runs` holds the results of all runs under `setting`.
    """
    grouped = {way: [run for run in runs if run["way"] == way] for way in rates}
    every = {way: measures(setting, some) for way, some in grouped.items()}
    first = next(iter(every))
    rows = []
    for way, mine in every.items():
        row: dict[str, Any] = {
            "way": way,
            "lr": rates[way],
            "edge": rates[way] in (min(setting["rates"]), max(setting["rates"])),
        }
        for key in ("updates", "staleness"):
            row[key] = float(np.mean([run.get(key, np.nan) for run in grouped[way]]))
        row["oldest"] = max(run.get("oldest", 0) for run in grouped[way])
        for key, values in mine.items():
            row[key] = quartiles(values)
            row[f"{key}: more than"] = [other for other in every if beyond(values, every[other][key]) > 0]
            if key.startswith("samples"):
                pairs = zip(values, every[first][key], strict=True)
                row[f"{key}: times {first}"] = quartiles([inf if not isfinite(a) else a / b for a, b in pairs])
        rows.append(row)
    return rows


@experiment
class Progress(Experiment):
    """Losses against samples, of each way with its own tuned learning rate."""

    name, order, width = "progress", 20, 160
    about = "loss per iteration, per sample and per second, each way tuned, several seeds"

    def keeps(self, options: argparse.Namespace) -> bool:
        """Not where only some ways are trained."""
        return bool(options.out) or not (options.quick or options.only)

    def flags(self, parser: argparse.ArgumentParser) -> None:
        """Network, data, nodes, and what is tried."""

        def numbers(text: str) -> list[float]:
            return [float(part) for part in text.split(",")]

        parser.add_argument("--only", default="", help="ways whose name holds this text; written to --out alone")
        parser.add_argument("--ranks", type=int, default=8, help="of the ring; the servers' have one worker less")
        parser.add_argument("--data", default="digits", help="such as ../shared/data/mnist")
        parser.add_argument("--model", default="mlp:64-128x7-10", help="a layer for each rank at least")
        parser.add_argument(
            "--batch", type=int, default=56, help="samples of a step; 7 workers and 8 micro-batches share 56 evenly"
        )
        parser.add_argument("--optimizer", choices=GRID, default="momentum")
        parser.add_argument("--epochs", type=int, help="default: 6; quick: 2")
        parser.add_argument("--milliseconds", type=float, default=12.0, help="of a worker's step on its emulated node")
        parser.add_argument("--jitter", type=float, default=0.3)
        parser.add_argument("--rates", type=numbers, help="learning rates that are tried for every way")
        parser.add_argument("--targets", type=numbers, default=[0.5, 0.2], help="losses to reach")

    def measure(self, options: argparse.Namespace, table: Table, save: Callable[[], None]) -> None:
        """Tune, then train; --quick: few rates, seeds and steps."""
        setting = _setting(options)
        began = time.perf_counter()
        trials: list[dict[str, Any]] = []
        runs: list[dict[str, Any]] = []
        rates: dict[str, float] = {}
        ways = [way for way in WAYS.values() if options.only in way.label]
        budget = list(product(setting.rates, setting.tuning_seeds))
        total = len(ways) * (len(budget) + len(setting.seeds))
        print(
            f"{total} runs of {setting.epochs * setting.steps_per_epoch} steps on {setting.ranks} ranks; nodes of "
            f"{setting.pace:g} GFLOP/s, {setting.milliseconds:g} ms for a worker's step",
            flush=True,
        )

        def train(tried: Sequence[Trial], into: list[dict[str, Any]], trace: bool) -> None:
            for found in train_each(setting, tried, trace):
                into.append(found)
                took = f" ({found['seconds']:.1f} s)" if "seconds" in found else ""
                print(
                    f"{len(trials) + len(runs)}/{total} {time.perf_counter() - began:.0f} s  {found['way']}, "
                    f"lr {found['lr']:g}, seed {found['seed']}: loss {found['train_loss']:.4f}{took}",
                    flush=True,
                )

        for trainer in dict.fromkeys(way.trainer for way in ways):
            some = [way for way in ways if way.trainer == trainer]
            train([(way, *each) for way in some for each in budget], trials, False)
            for way in some:
                rates[way.label] = best_rate([trial for trial in trials if trial["way"] == way.label])
            train([(way, rates[way.label], seed) for way in some for seed in setting.seeds], runs, True)
        facts = asdict(setting)
        seconds = time.perf_counter() - began
        table.clear()
        table |= {
            "provenance": provenance(seconds=round(seconds, 1), runs=total, pace=f"{setting.pace:g}"),
            "setting": facts,
            "ways": [{"name": way.label, "program": way.trainer, "settings": dict(way.settings)} for way in ways],
            "rows": tabulate(facts, rates, runs),
            "tuning": [{key: trial[key] for key in ("way", "lr", "seed", "train_loss")} for trial in trials],
            "runs": runs,
        }

    def show(self, table: Table, page: Page) -> None:
        """What each way reached, what it took, and what differs beyond the spread."""
        progress_figure.show(table, page)

    def draw(self, table: Table, path: Path) -> None:
        """Loss against samples and updates, tests against samples, and what tuning saw."""
        progress_figure.draw(table, path)

    def claims(self, table: Table) -> list[Claim]:
        """Samples until the last target, beside bsp."""
        rows = {row["way"]: row for row in table["rows"]}
        keys = [key for key in rows.get(BSP, {}) if key.startswith("samples to ") and key.endswith(f": times {BSP}")]
        if not keys or RING not in rows:
            return []
        key = keys[-1]

        def times(way: str) -> str:
            median = rows[way][key][0]
            return "never" if median is None else f"{median:.2f}"

        others = ", ".join(f"{way} {times(way)}" for way in rows if way not in (BSP, RING))
        target = key.split(":")[0].removeprefix("samples to ")
        text = f"until a loss of {target} the ring needs {times(RING)} times the samples of {BSP}"
        return [Claim(text, others, "emulated nodes", self.name)]


def _setting(options: argparse.Namespace) -> Setting:
    """What the command line says."""
    quick, least = options.quick, GRID[options.optimizer]
    rates = options.rates or [float(f"{least * FACTOR**n:.3g}") for n in ((2, 4) if quick else range(RATES))]
    epochs = options.epochs or (2 if quick else 6)
    return Setting(
        options.ranks,
        options.data,
        options.model,
        options.batch,
        options.optimizer,
        epochs,
        max(1, epochs // 3),
        1 if quick else 2,
        options.milliseconds,
        options.jitter,
        sorted(rates),
        [100] if quick else [100, 101, 102],
        [0, 1] if quick else [0, 1, 2, 3, 4],
        options.targets,
    )
