"""Experiments: each makes one figure or table from real runs."""
