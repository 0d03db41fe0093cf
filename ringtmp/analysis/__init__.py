"""Reads run folders: data frames of events, where the time went, who talked to whom; and draws Gantt charts.

>>> run = open_run("runs/first")
>>> run.events(), run.breakdown(), run.communication(), run.history(), run.staleness(), run.peak_in_flight()
>>> draw_gantt(run.events(), steps=(40, 41)).figure.savefig("gantt.png")
>>> write_perfetto(run.events(), "first.json.gz")
"""

from ringtmp.analysis.draw import draw_gantt
from ringtmp.analysis.perfetto import write_perfetto
from ringtmp.analysis.reader import Run, open_run, peak_in_flight, staleness

__all__ = ["Run", "draw_gantt", "open_run", "peak_in_flight", "staleness", "write_perfetto"]
