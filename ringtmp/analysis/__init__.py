"""Reads run folders: data frames of events, time by part, messages between ranks; and draws Gantt charts.

>>> run = open_run("runs/first")
>>> run.events(), run.breakdown(), run.communication(), run.history(), run.staleness(), run.peak_in_flight()
>>> waits(run.events(), run.ranks()), transfers(run.events(), run.ranks())  # and servers, lead: of a run of ps
>>> critical_path(run.events()), run.live_status(), run.recoveries()
>>> draw_gantt(run.events(), steps=(40, 41)).figure.savefig("gantt.png")
>>> write_perfetto(run.events(), "first.json.gz")
"""

from ringtmp.analysis.critical import critical_path
from ringtmp.analysis.draw import draw_gantt
from ringtmp.analysis.exchange import lead, servers, transfers, waits
from ringtmp.analysis.perfetto import write_perfetto
from ringtmp.analysis.reader import Run, open_run, peak_in_flight, staleness

__all__ = [
    "Run",
    "critical_path",
    "draw_gantt",
    "lead",
    "open_run",
    "peak_in_flight",
    "servers",
    "staleness",
    "transfers",
    "waits",
    "write_perfetto",
]
