"""What experiments and benchmarks share: ways to train, cases, the launcher, results, figures, hosts, faults."""
