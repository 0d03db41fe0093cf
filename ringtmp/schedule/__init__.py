"""Schedules: plans, the local rule, policies, the plan checker, and the split of layers over ranks."""
