"""Events as a Chrome trace, which ui.perfetto.dev and chrome://tracing open, with an arrow for each message.

What the two viewers do with a file is taken from Perfetto's importer (src/trace_processor/importers/json): it reads
events in order of time, hangs an arrow's ends on the bars that are open at that moment, drops an arrow that ends before
it starts, and cuts times to whole nanoseconds.
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

from ringtmp.analysis.reader import part_of
from ringtmp.errors import UserError

ENDINGS = (".json", ".json.gz")
_THREADS = ("compute", "waits, transfers, files")
_ARGUMENTS = ("step", "micro_batch", "stage", "peer", "bytes", "version")
_NOTHING = {"bytes": 0}  # what stands for "none"; of the others -1


def write_perfetto(events: pd.DataFrame, path: str | Path) -> None:
    """Write events as Chrome trace-event JSON.

    Every rank is a process with two threads, one that computes and one for all else. From each action whose result
    went to another rank an arrow leads to the action there that took it (`arrows`).

    Parameters
    ----------
    events : DataFrame
        As `Run.events` or `Outcome.events` give it.
    path : str or Path
        Ends in `.json`, or in `.json.gz` to be compressed. Replaced if it is there, and never half written.

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
    """Which action's result went to which action on another rank.

    Activations go from F of stage s to F of stage s + 1 (of evaluations from E to E), gradients from I (or B) of stage
    s to that of stage s - 1, of the same step and micro-batch.

    Parameters
    ----------
    events : DataFrame

    Returns
    -------
    DataFrame
        `name` (activation, gradient), and the positions in `events` of the two: `source`, `target`.
    """
    key = ["step", "micro_batch", "stage", "again"]
    found = []
    for name, kinds, hop in (("activation", "F", 1), ("activation", "E", 1), ("gradient", "IB", -1)):
        position = np.flatnonzero(events["kind"].isin(list(kinds)))
        takers = events.iloc[position][["rank", *key[:3]]].assign(position=position)
        takers["again"] = takers.groupby(key[:3]).cumcount()  # a step that was done twice
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
        arguments = {n: value for n, value in zip(names, values, strict=True) if value != _NOTHING.get(n, -1)}
        number = arguments.get("micro_batch")
        yield {
            # Perfetto picks a bar's colour by its name without the digits.
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
    """Two entries for each arrow, whose times lie inside the bars and in order, also where clocks differ a little.

    Not on a bar's end or start, where the one before or after it may be taken for it.
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
    """Thread numbers are one's own in the whole file: Perfetto's older versions name threads by them alone."""
    return 2 * rank + thread + 1


def _microseconds(nanoseconds: npt.ArrayLike) -> list[float]:
    """Times as the format has them, in floats that give the same nanoseconds after times 1000 and a cut."""
    whole = np.asarray(nanoseconds, np.int64)
    times = whole / 1000
    return np.where((times * 1000).astype(np.int64) < whole, np.nextafter(times, np.inf), times).tolist()
