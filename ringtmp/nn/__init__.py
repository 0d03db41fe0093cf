"""Networks as chains of layers over the kernels; knows nothing of MPI."""
