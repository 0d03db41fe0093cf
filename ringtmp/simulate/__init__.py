"""Simulation: both event loops, their Python interface, and the planner that searches with them."""
