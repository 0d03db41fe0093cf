"""The page of `ringtmp top`: a run in the terminal, during the run and afterwards; it only reads files."""

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ringtmp.analysis.reader import Run, open_run
from ringtmp.errors import UserError
from ringtmp.trace.events import PARTS

COLOURS = {"compute": "blue", "transfer": "yellow", "wait": "red", "checkpoint": "magenta", "other": "bright_black"}
_BAR = 30  # characters
_RECENT = 5.0  # seconds of training over which rate and idle share are shown
_LATE = 5.0  # seconds without a new status after which a rank of a running job is marked
_BLOCKS = "▁▂▃▄▅▆▇█"


class View:
    """The page shown for a run; remembers the ranks' status between two calls of `page`.

    Parameters
    ----------
    run : str
        A run folder.
    """

    def __init__(self, run: str) -> None:
        self.path = run
        self.before: pd.DataFrame | None = None
        self.known: tuple[int, pd.DataFrame] | None = None  # launch and its ranks: a trace may be locked by its writer

    def page(self, now: float | None = None) -> Group:
        """The whole page. Raises `UserError` if the path is not a run folder.

        Parameters
        ----------
        now : float, optional
            Seconds since the epoch; default: the current time.
        """
        now = time.time() if now is None else now
        run = open_run(self.path)
        running = run.status["state"] == "running"
        history = _history(run)
        parts: list[Any] = [
            Panel(_heading(run, history), title=str(run.path), title_align="left"),
            self._ranks(run, running, now),
        ]
        if len(history):
            parts.append(Text(f"samples/s {_sparks(_rates(history, run.config['batch_size']))}"))
        recoveries = run.recoveries()
        for _, row in recoveries.tail(5).iterrows():
            parts.append(
                Text(
                    f"launch {row['launch']}: {row['what']}; continued at step {row['step']}, "
                    f"{row['again']} steps repeated",
                    style="red",
                )
            )
        return Group(*parts)

    def _ranks(self, run: Run, running: bool, now: float) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("ring", "host", "work", "step", "its time", "idle", ""):
            table.add_column(name, justify="right" if name in ("step", "idle") else "left", no_wrap=True)
        try:
            self.known = run.launch, run.ranks()
            status = run.live_status()
        except (UserError, KeyError):
            if not self.known or self.known[0] != run.launch:
                return Table("this launch writes no trace (--trace off), or has not begun", box=None)
            status = run.live_status()
        ranks = self.known[1]
        shown = _since(self.before, status) if running else status
        self.before = status
        count = len(ranks)
        for _, rank in ranks.iterrows():
            number = int(rank["rank"])
            arrow = "↺" if count == 1 else "↩ 0" if number == count - 1 else f"→ {number + 1}"
            cells: list[Any] = [f"{number} {arrow}", str(rank["environment"]["host"]), _work(rank)]
            if number not in shown.index:
                table.add_row(*cells, "", Text("no status yet", style="dim"), "", "")
                continue
            row = shown.loc[number]
            age = now - row["time"]
            late = f"no status for {age:.0f} s" if running and age > _LATE else ""
            step = f"{int(row['step']):,}" if row["step"] else ""
            table.add_row(
                *cells, step, _bar(row), f"{row['wait'] / max(row['wall'], 1e-9):.0%}", Text(late, style="bold red")
            )
        table.caption = " ".join(f"[{colour}]█[/] {part}" for part, colour in COLOURS.items())
        table.caption_justify = "left"
        return table


def _heading(run: Run, history: pd.DataFrame) -> Text:
    status, config = run.status, run.config
    style = {"running": "green", "finished": "bold green", "stopped": "yellow"}.get(status["state"], "bold red")
    text = Text(status["state"], style=style)
    steps, tests = (history[history["kind"] == kind] for kind in ("train", "test"))
    if len(steps):
        last = steps.iloc[-1]
        text.append(
            f"   step {int(last['step']):,}   epoch {last['epoch']:.1f}   loss {last['loss']:.4f}", style="default"
        )
    if len(tests) and not np.isnan(score := tests.iloc[-1]["score"]):
        classes = json.loads((run.path / "data.json").read_text())["target"] == "classes"
        text.append(f"   test {score:.1%}" if classes else f"   test R2 {score:.3f}", style="default")
    if len(steps):
        rate, idle = _recent(steps, config["batch_size"])
        text.append(f"   {rate:,.0f} samples/s   idle {idle:.0%}", style="default")
    model = config["model"] if isinstance(config["model"], str) else f"{len(config['model'])} layers"
    text.append(f"\n{model} on {config['data']}, batch {config['batch_size']}; launch {run.launch}", style="dim")
    if status.get("error"):
        text.append(f"\n{status['error']}", style="red")
    return text


def _history(run: Run) -> pd.DataFrame:
    try:
        return run.history()
    except (OSError, pd.errors.EmptyDataError):
        return pd.DataFrame(columns=["kind", "step", "epoch", "loss", "score", "idle", "samples_per_s", "seconds"])


def _work(rank: pd.Series) -> str:
    """The layers or the role of a rank, from its trace's attributes."""
    layers = rank.get("layers")
    if isinstance(layers, list) and layers:
        return "layers " + " ".join(f"{a}" if b == a + 1 else f"{a}-{b - 1}" for a, b in layers)
    return str(rank.get("role", ""))


def _since(before: pd.DataFrame | None, status: pd.DataFrame) -> pd.DataFrame:
    """Time since the previous page, for ranks with a new status; otherwise since the start."""
    if before is None:
        return status
    both = status.index.intersection(before.index)
    shown = status.copy()
    for rank in both:
        if status.loc[rank, "wall"] > before.loc[rank, "wall"]:
            columns = [*PARTS, "wall"]
            shown.loc[rank, columns] = status.loc[rank, columns] - before.loc[rank, columns]
    return shown


def _bar(row: pd.Series) -> Text:
    """Fractions of the time as coloured blocks that fill the bar."""
    ends = np.rint(_BAR * np.cumsum([max(0.0, row[part]) for part in PARTS]) / max(row["wall"], 1e-9)).astype(int)
    text, at = Text(), 0
    for part, end in zip(PARTS, np.clip(ends, 0, _BAR), strict=True):
        text.append("█" * max(0, end - at), style=COLOURS[part])
        at = max(at, end)
    return text


def _durations(steps: pd.DataFrame, batch: int) -> np.ndarray:
    """Seconds of each step, from its own rate; 0 where no time was measured."""
    with np.errstate(divide="ignore"):
        return np.nan_to_num(batch / steps["samples_per_s"].to_numpy(float), nan=0.0, posinf=0.0)


def _recent(steps: pd.DataFrame, batch: int) -> tuple[float, float]:
    """Samples per second, and share of the time that ranks waited, over the steps of the last seconds."""
    seconds = _durations(steps, batch)
    count = max(1, int((np.cumsum(seconds[::-1]) <= _RECENT).sum()))
    seconds, idle = seconds[-count:], np.nan_to_num(steps["idle"].to_numpy(float)[-count:])
    whole = max(seconds.sum(), 1e-9)
    return count * batch / whole, float((idle * seconds).sum() / whole)


def _rates(history: pd.DataFrame, batch: int, points: int = 60) -> list[float]:
    """Samples per second in at most `points` intervals of equal length, oldest first, over all launches of the run."""
    steps = history[history["kind"] == "train"]
    ends = np.cumsum(_durations(steps, batch))
    if len(ends) < 2 or ends[-1] <= ends[0]:
        return []
    edges = np.linspace(ends[0], ends[-1], min(points, len(ends) - 1) + 1)
    counts = np.diff(np.searchsorted(ends, edges * (1 + 1e-12), side="right"))
    return (counts * batch / np.diff(edges)).tolist()


def _sparks(values: Sequence[float]) -> str:
    """`values` as a line of blocks, and the value of the highest block."""
    if not values:
        return ""
    top = max(values) or 1.0
    line = "".join(_BLOCKS[min(len(_BLOCKS) - 1, int(value / top * len(_BLOCKS)))] for value in values)
    return f"{line} (up to {top:,.0f})"
