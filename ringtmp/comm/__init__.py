"""Communication over MPI: start and end, point-to-point messages, waiting, sums round a ring, clocks, ULFM."""
