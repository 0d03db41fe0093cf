"""Traces: what a rank did, in nanoseconds; and its live status while it runs."""
