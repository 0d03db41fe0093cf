"""Benchmarks: each prints one table and writes its numbers to jobs/bench/results/NAME.json."""
