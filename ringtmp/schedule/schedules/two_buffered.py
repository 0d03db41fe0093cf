"""PipeDream-2BW: two versions of the weights, the forwards one update behind (Narayanan et al. 2021).

The paper is "Memory-Efficient Pipeline-Parallel DNN Training". The local rule decides what runs. A rank may begin the
next step's forwards before its update, because they take the weights before it.
"""

from ringtmp.schedule.registry import Schedule, add

add(Schedule("2bw", weights="previous"))
