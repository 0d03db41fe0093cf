"""Reads run folders: data frames of events, where the time went, who talked to whom, and a Gantt chart.

>>> run = open_run("runs/first")
>>> run.events(), run.breakdown(), run.communication(), run.history()
"""

from ringtmp.analysis.draw import draw_gantt
from ringtmp.analysis.reader import Run, open_run

__all__ = ["Run", "draw_gantt", "open_run"]
