"""Events as a Chrome trace for ui.perfetto.dev and chrome://tracing, with an arrow for each message.

The viewers' behaviour is taken from Perfetto's importer (src/trace_processor/importers/json): it reads events in order
of time, attaches each end of an arrow to the bar that is open at that time, drops an arrow that ends before it starts,
and truncates times to whole nanoseconds.
"""

import gzip
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ringtmp.errors import UserError
from ringtmp.trace.events import part_of

ENDINGS = (".json", ".json.gz")
_THREADS = ("compute", "waits, transfers, files")
_ARGUMENTS = ("step", "micro_batch", "stage", "peer", "bytes", "version")
_NONE = {"bytes": 0}  # the value that means "none"; -1 for the others


def write_perfetto(events: pd.DataFrame, path: str | Path) -> None:
    """Write events as Chrome trace-event JSON.

    Each rank is a process with two threads: one for computation, one for everything else. An arrow leads from each
    action whose result went to another rank to the action there that used it (`arrows`).

    Parameters
    ----------
    events : DataFrame
        From `Run.events` or `Outcome.events`.
    path : str or Path
        Ends in `.json`, or in `.json.gz` for a compressed file. An existing file is replaced atomically.

    Raises
    ------
    UserError
        There are no events, or the file cannot be written.
    """
    path = Path(path)
    if not path.name.endswith(ENDINGS):
        raise UserError(f"{path}: expected a name that ends in {' or '.join(ENDINGS)}")
    if events.empty:
        raise UserError(f"{path}: there are no events to write")
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with gzip.open(temporary, "wt", 6) if path.suffix == ".gz" else temporary.open("w") as file:
            file.write('{"displayTimeUnit": "ns", "traceEvents": [\n')
            separator = ""
            for each in _entries(events.reset_index(drop=True)):
                file.write(separator + json.dumps(each, separators=(",", ":")))
                separator = ",\n"
            file.write("\n]}\n")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def arrows(events: pd.DataFrame) -> pd.DataFrame:
    """Pairs of actions on two ranks, where the result of one went to the other.

    Activations go from F of stage s to F of stage s + 1 (in evaluations from E to E), gradients from I (or B) of stage
    s to I (or B) of stage s - 1, of the same step and micro-batch.

    Parameters
    ----------
    events : DataFrame
        From `Run.events` or `Outcome.events`.

    Returns
    -------
    DataFrame
        `name` (activation, gradient), and the positions of both actions in `events`: `source`, `target`.
    """
    key = ["step", "micro_batch", "stage", "again"]
    found = []
    for name, kinds, hop in (("activation", "F", 1), ("activation", "E", 1), ("gradient", "IB", -1)):
        position = np.flatnonzero(events["kind"].isin(list(kinds)))
        takers = events.iloc[position][["rank", *key[:3]]].assign(position=position)
        takers["again"] = takers.groupby(key[:3]).cumcount()  # a step may occur twice, after a recovery
        makers = takers.assign(stage=takers["stage"] + hop)
        pairs = makers.merge(takers, on=key, suffixes=("_from", "_to"))
        pairs = pairs[pairs["rank_from"] != pairs["rank_to"]]
        found.append(pd.DataFrame({"name": name, "source": pairs["position_from"], "target": pairs["position_to"]}))
    return pd.concat(found, ignore_index=True)


def _entries(events: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The entries of the file: names, bars, arrows."""
    for rank in sorted(events["rank"].unique().tolist()):
        yield {"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank}"}}
        yield {"ph": "M", "name": "process_sort_index", "pid": rank, "args": {"sort_index": rank}}
        for thread, name in enumerate(_THREADS):
            where = {"pid": rank, "tid": _thread(rank, thread)}
            yield {"ph": "M", "name": "thread_name", **where, "args": {"name": name}}
            yield {"ph": "M", "name": "thread_sort_index", **where, "args": {"sort_index": thread}}
    yield from _bars(events)
    yield from _flows(events)


def _bars(events: pd.DataFrame) -> Iterator[dict[str, Any]]:
    parts = events["kind"].map(part_of).tolist()
    names = [name for name in _ARGUMENTS if name in events]
    columns = [events[name].tolist() for name in names]
    times = [_microseconds(events["start"]), _microseconds(events["end"] - events["start"])]
    rows = zip(parts, events["rank"].tolist(), events["kind"].tolist(), *times, *columns, strict=True)
    for part, rank, kind, start, lasts, *values in rows:
        arguments = {n: value for n, value in zip(names, values, strict=True) if value != _NONE.get(n, -1)}
        number = arguments.get("micro_batch")
        yield {
            # Perfetto derives the colour of a bar from its name without digits.
            "ph": "X",
            "name": kind if number is None else f"{kind}{number}",
            "cat": part,
            "pid": rank,
            "tid": _thread(rank, int(part != "compute")),
            "ts": start,
            "dur": lasts,
            "args": arguments,
        }


def _flows(events: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Two entries per arrow, with times inside the bars and in order, even if the ranks' clocks differ slightly.

    Never at the start or end of a bar, where the viewer may attach the arrow to the neighbouring bar.
    """
    pairs = arrows(events)
    source, target = events.iloc[pairs["source"]], events.iloc[pairs["target"]]
    begun, taken = source["start"].to_numpy(), target["start"].to_numpy()
    leaves = np.maximum(np.minimum(source["end"].to_numpy() - 1, taken), begun)
    arrives = np.minimum(np.maximum(taken + 1, leaves), np.maximum(target["end"].to_numpy() - 1, taken))
    ranks = zip(source["rank"].tolist(), target["rank"].tolist(), strict=True)
    times = zip(_microseconds(leaves), _microseconds(arrives), strict=True)
    rows = zip(pairs["name"].tolist(), ranks, times, strict=True)
    for number, (name, (sender, receiver), (start, end)) in enumerate(rows):
        both = {"name": name, "cat": "message", "id": number}
        yield {"ph": "s", **both, "pid": sender, "tid": _thread(sender, 0), "ts": start}
        yield {"ph": "f", "bp": "e", **both, "pid": receiver, "tid": _thread(receiver, 0), "ts": end}


def _thread(rank: int, thread: int) -> int:
    """A thread number that is unique in the file: older versions of Perfetto name threads by the number only."""
    return 2 * rank + thread + 1


def _microseconds(nanoseconds: npt.ArrayLike) -> list[float]:
    """Times in microseconds, as floats that give the same nanoseconds after multiplication by 1000 and truncation."""
    whole = np.asarray(nanoseconds, np.int64)
    times = whole / 1000
    return np.where((times * 1000).astype(np.int64) < whole, np.nextafter(times, np.inf), times).tolist()
