"""The end of a run: did it learn, how fast, where did the time go given the cores, and what to try next."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

from ringtmp.run.hosts import Host
from ringtmp.run.job import Job
from ringtmp.run.output.advice import Measured, advice
from ringtmp.run.output.lines import show_loss, show_rate
from ringtmp.run.output.terminal import Terminal
from ringtmp.run.output.time_table import mean_shares, seconds, split_by_cores, time_table, workers
from ringtmp.run.result import Result

_LATE = 0.02  # share by which emulated actions may take too long before a warning says so
_NAN = float("nan")


@dataclass(frozen=True)
class Summary:
    """What is known at the end of a launch.

    Attributes
    ----------
    job : Job
        The job.
    result : Result
        Its result, with the rows of all ranks.
    hosts : sequence of Host
        All hosts of the launch.
    heading : str
        Heading of the column that shows each rank's part of the work.
    ring : bool
        Whether the trainer is the ring.
    """

    job: Job
    result: Result
    hosts: Sequence[Host]
    heading: str
    ring: bool

    @property
    def train_rows(self) -> list[dict[str, Any]]:
        """Rows of the steps of this launch."""
        return [row for row in self.result.rows if row["kind"] == "train"]

    def last(self, key: str) -> float:
        """Mean of `key` over the steps of the last epoch, as far as this launch made them; NaN without steps."""
        rows = self.train_rows[-self.job.steps_per_epoch :]
        return sum(row[key] for row in rows) / len(rows) if rows else _NAN

    @property
    def test_score(self) -> float:
        """Score of the last evaluation; NaN without one."""
        return next((row["score"] for row in reversed(self.result.rows) if row["kind"] == "test"), _NAN)

    @property
    def guess(self) -> float:
        """Test score of always guessing the most frequent class, or the mean; NaN: unknown."""
        if self.job.info.target == "values":
            return 0.0
        return self.job.data.most_frequent("test") if self.job.data else _NAN

    def measured(self) -> Measured:
        """The numbers from which the advice follows."""
        c, job, result = self.job.config, self.job, self.result
        working = workers(result.ranks)
        split = split_by_cores(result.ranks)
        share = mean_shares(working, split)
        computed = [seconds(row, split)["compute"] for row in working]
        rows = self.train_rows
        return Measured(
            ranks=sum(len(host.ranks) for host in self.hosts),
            room=sum(host.room(c.threads) for host in self.hosts),
            cores_each=min(host.cores / len(host.ranks) for host in self.hosts),
            threads=c.threads,
            rings=c.rings if job.across else 1,
            emulated=bool(c.node_speed),
            ring=self.ring,
            transfer=share.get("transfer", 0.0),
            neighbour=share.get("neighbour", share.get("wait", 0.0)),
            core=share.get("core", _NAN),
            checkpoint=share.get("checkpoint", 0.0),
            unequal=max(computed) * len(computed) / sum(computed) if sum(computed) else 1.0,
            layers=len(job.model.layers),
            batch_size=c.batch_size,
            micro_batches=c.micro_batches,
            balanced=c.balance == "auto",
            shared=c.colocate or c.consistency == "allreduce",
            lr=c.lr,
            steps=len(rows),
            checkpoint_every=0 if c.mtbf else c.checkpoint_every,
            first_loss=rows[0]["loss"] if rows and not job.start else _NAN,
            last_loss=self.last("loss"),
            score=self.test_score,
            guess=self.guess,
            folder=result.folder if result.folder and c.trace and job.timetable().every >= job.total else "",
        )


def conclude(terminal: Terminal, summary: Summary, page: Path | None) -> None:
    """Print the end of a launch.

    Parameters
    ----------
    terminal : Terminal
        Where to print.
    summary : Summary
        What is known.
    page : Path or None
        The page of the run; None: it was not written.
    """
    result = summary.result
    spent = sum(sum(row["parts"].values()) for row in result.ranks) / max(len(result.ranks), 1) / 1e9
    terminal.say(f"{result.state} at step {result.step} after {spent:.1f} s")
    for label, text in (("did it learn", _learned(summary)), ("how fast", _fast(summary))):
        if text:
            terminal.say(_wrapped(f"  {label:12}  {text}", terminal.columns))
    terminal.draw(time_table(result.ranks, summary.heading, summary.ring, terminal.width))
    for note in _notes(summary):
        terminal.say(note)
    if result.state == "finished" and summary.train_rows:
        terminal.say(f"try next: {advice(summary.measured())}")
    if page:
        terminal.say(f"page: {page}")
    terminal.say(f"weights sha256 {result.sha256}")
    if result.state == "stopped" and result.saved and result.folder:
        terminal.say(f"continue with: --resume {result.folder}")


def _wrapped(text: str, columns: int | None) -> str:
    """The text in lines of a terminal that has `columns`; in a log as one line."""
    return textwrap.fill(text, columns, subsequent_indent=" " * 16) if columns else text


def _learned(summary: Summary) -> str:
    """Losses and scores at the begin and at the end; empty without steps."""
    rows, classes = summary.train_rows, summary.job.info.target == "classes"
    if not rows:
        return ""
    first = rows[0]
    begin, end = show_loss(first["loss"]), show_loss(summary.last("loss"))
    text = f"loss {begin} in step {first['step']} -> {end} in the last epoch"
    if not isnan(first["score"]):
        text += f"; train accuracy {first['score']:.1%} -> {summary.last('score'):.1%}"
    score, guess = summary.test_score, summary.guess
    if not isnan(score):
        text += f"; test accuracy {score:.2%}" if classes else f"; test R2 {score:.4f}"
        what = "guessing the most frequent class" if classes else "guessing the mean"
        if not isnan(guess):
            text += f" ({what}: {guess:.1%})" if classes else f" ({what}: 0)"
    return text


def _fast(summary: Summary) -> str:
    """Samples per second after the first quarter of the steps; empty with too few steps."""
    rows = summary.train_rows
    skip = max(len(rows) // 4, 1)
    if len(rows) <= skip or rows[-1]["seconds"] <= rows[skip - 1]["seconds"]:
        return ""
    passed = rows[-1]["seconds"] - rows[skip - 1]["seconds"]
    rate = (len(rows) - skip) * summary.job.config.batch_size / passed
    return f"{show_rate(rate)} samples/s from step {rows[skip]['step']} to {rows[-1]['step']}, evaluations included"


def _notes(summary: Summary) -> list[str]:
    """What to know about the table of the time."""
    c, ranks, notes = summary.job.config, summary.result.ranks, []
    late = max((row["late"] for row in ranks), default=0.0)
    if late > _LATE:
        notes.append(
            f"warning: actions took up to {late:.0%} longer than --node-speed says: this machine is too slow for it"
        )
    if c.node_speed:
        notes.append("The nodes are emulated (--node-speed): their actions sleep, so waits for a core are not known.")
    elif not split_by_cores(ranks) and any(h.is_crowded(c.threads) for h in summary.hosts):
        notes.append("Waits for a core are part of all these times: only a trace (--trace on) tells them apart.")
    return notes
