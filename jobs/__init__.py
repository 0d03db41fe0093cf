"""What one runs on a cluster: benchmarks, and later batch scripts and experiments."""
