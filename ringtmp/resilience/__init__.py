"""Resilience: copies of state in node memory, recovery, and the supervisor that starts a lost job again."""
