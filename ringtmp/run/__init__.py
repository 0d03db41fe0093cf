"""What every trainer needs: configuration, data, MPI set-up, traces, checkpoints, progress."""
