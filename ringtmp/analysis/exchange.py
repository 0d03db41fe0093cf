"""How workers and parameter servers exchanged gradients and weights: waits by cause, transfers, servers, leads.

>>> run = open_run("runs/first")
>>> waits(run.events(), run.ranks()), transfers(run.events(), run.ranks())
>>> servers(run.events(), run.ranks()), lead(run.events(), run.ranks())["lead"].max()

All functions take the events (`Run.events`) and ranks (`Run.ranks`) of a trace of `ps`. A worker pushes its gradient of
a chunk of parameters to the server of that chunk, and pulls the answer to that push. In the events `stage` is the
chunk and `step` the step of the push, also in the wait for the answer. A rank of role "both" is the server of those
chunks for which it records its own gradients; these are no messages. Messages of stage -1 control the run and are not
counted.
"""

import numpy as np
import pandas as pd

from ringtmp.errors import UserError

CAUSES = ("server", "slower", "bound", "neighbour", "other")


def waits(events: pd.DataFrame, ranks: pd.DataFrame) -> pd.DataFrame:
    """Seconds that each worker waited, by cause.

    Parameters
    ----------
    events : DataFrame
        Events of the trace, from `Run.events`.
    ranks : DataFrame
        Attributes of each rank, from `Run.ranks`.

    Returns
    -------
    DataFrame
        A row for each worker (index `rank`) with the columns, in seconds:

        - server: transfer of gradient and answer, the server's queue, and the update;
        - slower: gradients of the same step that other workers have not delivered (bound 0);
        - bound: gradients that other workers have not delivered, with a consistency bound above 0;
        - neighbour: all waits of an all-reduce;
        - other: waits for no chunk.

        The sum of a row is the time that the worker waited.

    Raises
    ------
    UserError
        The trace is not of `ps`.

    Notes ----- A wait for a chunk counts as slower or bound from the arrival of the worker's own gradient at the server
    to the arrival of all workers' gradients that the answer needs (`_complete`); before and after that it counts as
    server.
    """
    waited = events[(events["kind"] == "wait") & events["rank"].isin(_workers(ranks))]
    spans = (waited["end"] - waited["start"]).to_numpy().astype(float)  # whole nanoseconds, exact for 104 days
    if _allreduce(ranks):
        causes = {"neighbour": spans}
    else:
        on_chunk, bound = (waited["stage"] >= 0).to_numpy(), _bound(ranks)
        held = np.zeros(len(waited))
        if bound >= 0:
            held[on_chunk] = _held(waited[on_chunk], events, ranks)
        causes = {
            "server": np.where(on_chunk, spans - held, 0.0),
            "bound" if bound else "slower": held,
            "other": np.where(on_chunk, 0.0, spans),
        }
    table = pd.DataFrame(causes).groupby(waited["rank"].to_numpy()).sum()
    table = table.reindex(index=_workers(ranks), columns=list(CAUSES), fill_value=0.0) / 1e9
    return table.rename_axis(index="rank")


def transfers(events: pd.DataFrame, ranks: pd.DataFrame) -> pd.DataFrame:
    """Time in which messages of each worker were in flight, the share in which it did not wait, and bytes.

    Parameters
    ----------
    events : DataFrame
        Events of the trace, from `Run.events`.
    ranks : DataFrame
        Attributes of each rank, from `Run.ranks`.

    Returns
    -------
    DataFrame
        A row for each worker (index `rank`) with the columns:

        - seconds: time in which at least one push of the worker or answer to it was in flight (`_messages`); with an
          all-reduce, a message that it sent;
        - hidden: share of `seconds` in which the worker did not wait (NaN: no message);
        - pushed, pulled: bytes that the worker sent and received.

    Raises
    ------
    UserError
        The trace is not of `ps`.
    """
    workers, messages = _workers(ranks), _messages(events, ranks)
    flights = dict(list(messages.groupby("worker")))
    pauses = dict(list(events[events["kind"] == "wait"].groupby("rank")))
    sizes = _chunk_events(events, ranks, ["send", "receive"], serving=False).groupby(["kind", "rank"])["bytes"].sum()
    rows = []
    for worker in workers:
        flight, pause = flights.get(worker, messages.iloc[:0]), pauses.get(worker, events.iloc[:0])
        seconds, either = _covered(flight), _covered(flight, pause)
        rows.append(
            {
                "rank": worker,
                "seconds": seconds / 1e9,
                "hidden": (either - _covered(pause)) / seconds if seconds else np.nan,
                "pushed": int(sizes.get(("send", worker), 0)),
                "pulled": int(sizes.get(("receive", worker), 0)),
            }
        )
    return pd.DataFrame(rows).set_index("rank")


def servers(events: pd.DataFrame, ranks: pd.DataFrame) -> pd.DataFrame:
    """Use of the wall time of each rank that serves.

    Parameters
    ----------
    events : DataFrame
        Events of the trace, from `Run.events`.
    ranks : DataFrame
        Attributes of each rank, from `Run.ranks`.

    Returns
    -------
    DataFrame
        A row for each rank that serves (index `rank`; empty for an all-reduce) with the columns:

        - busy, waiting: shares of the rank's wall time in which it updated chunks, and in which it waited;
        - received_per_s, sent_per_s: bytes of gradients received and of answers sent, per second of wall time;
        - in_flight: share of the wall time in which at least one push to the rank or answer of it was in flight;
        - updates: number of updates.

    Raises
    ------
    UserError
        The trace is not of `ps`.
    """
    _workers(ranks)
    rows = ranks[ranks["role"].isin(["server", "both"]) & (ranks["consistency"] != "allreduce")].set_index("rank")
    wall = rows["ended"] - rows["began"]
    served = _chunk_events(events, ranks, ["U", "send", "receive"], serving=True)
    by_kind = {kind: served[served["kind"] == kind].groupby("rank") for kind in ("U", "send", "receive")}
    paused = events[events["kind"] == "wait"]
    flights = {server: _covered(mine) for server, mine in _messages(events, ranks).groupby("server")}
    updates = served[served["kind"] == "U"]
    parts = {
        "busy": (updates["end"] - updates["start"]).groupby(updates["rank"]).sum(),
        "waiting": (paused["end"] - paused["start"]).groupby(paused["rank"]).sum(),
        "received_per_s": by_kind["receive"]["bytes"].sum() * 1e9,
        "sent_per_s": by_kind["send"]["bytes"].sum() * 1e9,
        "in_flight": pd.Series(flights, dtype=float),
    }
    table = pd.DataFrame({name: part.reindex(rows.index, fill_value=0) / wall for name, part in parts.items()})
    return table.assign(updates=by_kind["U"].size().reindex(rows.index, fill_value=0).astype("int64"))


def lead(events: pd.DataFrame, ranks: pd.DataFrame) -> pd.DataFrame:
    """Lead of each answered worker over the slowest one, in steps; with BSP and SSP it is at most the bound.

    Parameters
    ----------
    events : DataFrame
        Events of the trace, from `Run.events`.
    ranks : DataFrame
        Attributes of each rank, from `Run.ranks`.

    Returns
    -------
    DataFrame
        A row for each answer, with the int64 columns rank (of the server), stage, worker, step and lead, in order of
        rank, stage, step and worker. Answers of a rank to itself are no messages and have no row. Lead is the answered
        step minus the newest step of the slowest worker: for each worker the newest step is that of the last gradient
        of the chunk that arrived before the answer left, and the slowest worker has the least.

    Raises
    ------
    UserError
        The trace is not of `ps`.

    Notes
    -----
    A worker counts until its last sign of life (`_last_signs`): a lost worker holds up no other. Backup workers are not
    waited for: with them the lead may exceed the bound.
    """
    workers, came = _workers(ranks), _came(events, ranks)
    answers = _chunk_events(events, ranks, ["send"], serving=True).rename(columns={"peer": "worker"})
    answers = answers.astype({"stage": "int64"}).sort_values("start", ignore_index=True)
    none = came["step"].min() - 1
    slowest = answers["step"].to_numpy().copy()  # the worker's own, which has come
    for worker, sign in _last_signs(events, came, workers).items():
        mine = came[came["worker"] == worker].sort_values("time")
        mine = mine.assign(newest=mine.groupby("stage")["step"].cummax())[["stage", "time", "newest"]]
        found = pd.merge_asof(answers[["stage", "start"]], mine, left_on="start", right_on="time", by="stage")
        newest = found["newest"].fillna(none).to_numpy()
        slowest = np.where(answers["start"] < sign, np.minimum(slowest, newest), slowest)
    answers["lead"] = answers["step"] - slowest
    columns = ["rank", "stage", "worker", "step", "lead"]
    return answers[columns].astype("int64").sort_values(["rank", "stage", "step", "worker"], ignore_index=True)


def _workers(ranks: pd.DataFrame) -> list[int]:
    """The ranks that work. Raises `UserError` if the trace is not of `ps`."""
    if "workers" not in ranks:
        raise UserError("exchange: the trace does not say which ranks work (it is not of ps)")
    return sorted(ranks["workers"].iloc[0])


def _allreduce(ranks: pd.DataFrame) -> bool:
    return bool(ranks["consistency"].iloc[0] == "allreduce")


def _bound(ranks: pd.DataFrame) -> int:
    return int(ranks["bound"].iloc[0])


def _owners(events: pd.DataFrame, ranks: pd.DataFrame) -> pd.Series:
    """The server of each chunk: the rank that only serves and receives gradients of it, or that receives its own."""
    came = events[events["kind"] == "receive"]
    role = came["rank"].map(ranks.set_index("rank")["role"])
    mine = (role == "server") | ((role == "both") & (came["peer"] == came["rank"]))
    return came[mine].groupby("stage")["rank"].first()


def _chunk_events(events: pd.DataFrame, ranks: pd.DataFrame, kinds: list[str], *, serving: bool) -> pd.DataFrame:
    """Events of chunks (with an all-reduce: buckets), either those of their servers or those of workers.

    The U of a server has a version; the U with which a worker on the same rank takes over new weights has none.
    """
    some = events[events["kind"].isin(kinds) & (events["stage"] >= 0)]
    owned = some["stage"].map(_owners(events, ranks)) == some["rank"]
    return some[owned & ((some["kind"] != "U") | (some["version"] >= 0))] if serving else some[~owned]


def _came(events: pd.DataFrame, ranks: pd.DataFrame) -> pd.DataFrame:
    """Arrivals of gradients at servers: worker, stage, step, time, the last three as int64."""
    came = _chunk_events(events, ranks, ["receive"], serving=True)
    came = came.rename(columns={"peer": "worker", "end": "time"})
    return came[["worker", "stage", "step", "time"]].astype("int64")


def _messages(events: pd.DataFrame, ranks: pd.DataFrame) -> pd.DataFrame:
    """Messages of chunks that arrived: worker, server (-1: all-reduce), start of the send, end of the receive.

    With an all-reduce the worker is the sender, and the hop distinguishes messages of one bucket and step.
    """
    moved = events[events["kind"].isin(["send", "receive"]) & (events["stage"] >= 0)]
    moved = moved.assign(hop=moved["micro_batch"] if _allreduce(ranks) else 0)
    key = ["source", "target", "stage", "step", "hop"]
    sends = moved[moved["kind"] == "send"].rename(columns={"rank": "source", "peer": "target"})
    receives = moved[moved["kind"] == "receive"].rename(columns={"rank": "target", "peer": "source"})
    found = sends[[*key, "start"]].merge(receives[[*key, "end"]], on=key)
    server = found["stage"].map(_owners(events, ranks)).fillna(-1).astype("int64")
    worker = found["source"].where(found["source"] != server, found["target"])
    return pd.DataFrame({"worker": worker, "server": server, "start": found["start"], "end": found["end"]})


def _covered(*frames: pd.DataFrame) -> int:
    """Nanoseconds that lie in at least one of the intervals from `start` to `end`."""
    start = np.concatenate([frame["start"].to_numpy() for frame in frames])
    order = np.argsort(start)
    start, end = start[order], np.concatenate([frame["end"].to_numpy() for frame in frames])[order]
    start[1:] = np.maximum(start[1:], np.maximum.accumulate(end)[:-1])
    return int(np.maximum(end - start, 0).sum())


def _held(waited: pd.DataFrame, events: pd.DataFrame, ranks: pd.DataFrame) -> np.ndarray:
    """Nanoseconds of each wait after the worker's own gradient had arrived and before those of the others had."""
    came = _came(events, ranks)
    if came.empty:
        return np.zeros(len(waited))
    own = came.groupby(["worker", "stage", "step"], as_index=False)["time"].min()
    asked = waited.rename(columns={"rank": "worker"})[["worker", "stage", "step"]].astype("int64")
    own = asked.merge(own, how="left")["time"].fillna(np.inf).to_numpy()
    needs = asked.assign(step=asked["step"] - _bound(ranks))[["stage", "step"]]
    each = needs.drop_duplicates(ignore_index=True)
    each["time"] = _complete(each, came, events, ranks)
    allowed = needs.merge(each, how="left")["time"].to_numpy()
    return np.maximum(np.minimum(waited["end"], allowed) - np.maximum(waited["start"], own), 0).to_numpy()


def _complete(needs: pd.DataFrame, came: pd.DataFrame, events: pd.DataFrame, ranks: pd.DataFrame) -> np.ndarray:
    """Time at which all workers' gradients of each (stage, step) of `needs` had arrived; -inf: before the trace.

    A later gradient of a worker stands for earlier ones. A gradient that never arrives (its worker is lost, or backup
    workers made it superfluous) counts as arrived when the server continued without it, with an update (BSP) or an
    answer that needed it; the same holds for all gradients after a worker's last one. If the server did not continue,
    it counts as arrived at the worker's last sign of life.
    """
    bound = _bound(ranks)
    went = _chunk_events(events, ranks, ["send"] if bound else ["send", "U"], serving=True)
    went = pd.DataFrame({"stage": went["stage"], "step": went["step"] - bound, "time": went["start"]}).astype("int64")
    first = came["step"].min()
    times = np.full(len(needs), -np.inf)
    for worker, sign in _last_signs(events, came, _workers(ranks)).items():
        mine = came[came["worker"] == worker]
        last = needs["stage"].map(mine.groupby("stage")["step"].max()).fillna(first - 1).astype("int64")
        missed = needs.assign(step=np.minimum(needs["step"], last + 1))
        time = np.minimum(_earliest(needs, mine), _earliest(missed, went))
        times = np.maximum(times, np.where(time < np.inf, time, sign))
    return np.where(needs["step"] < first, -np.inf, times)


def _earliest(needs: pd.DataFrame, known: pd.DataFrame) -> np.ndarray:
    """Least `time` in `known` of each stage of `needs`, at its step or a later one; inf: `known` has none."""
    known = known.groupby(["stage", "step"], as_index=False)["time"].min().sort_values("step")
    known["time"] = known["time"][::-1].groupby(known["stage"]).cummin()
    found = pd.merge_asof(needs.reset_index().sort_values("step"), known, on="step", by="stage", direction="forward")
    return found.set_index("index")["time"].reindex(needs.index).fillna(np.inf).to_numpy()


def _last_signs(events: pd.DataFrame, came: pd.DataFrame, workers: list[int]) -> pd.Series:
    """Time until which each worker took part. A worker that has left may still serve, and wait for no chunk.

    This is the end of its last action or wait for a chunk or, since a truncated trace may lack those, the arrival of
    its last gradient.
    """
    took_part = events["kind"].isin(["F", "I", "W", "wait"]) & (events["stage"] >= 0)
    own, sent = events[took_part].groupby("rank")["end"].max(), came.groupby("worker")["time"].max()
    signs = pd.concat([own, sent]).groupby(level=0).max()
    return signs.reindex(workers, fill_value=-1)
