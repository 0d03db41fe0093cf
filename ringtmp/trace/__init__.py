"""Traces: the actions of a rank, in nanoseconds; and its live status while it runs."""
