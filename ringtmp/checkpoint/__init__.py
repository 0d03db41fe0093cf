"""Checkpoints: their HDF5 format, the background writer, and the manager that decides when one is complete."""
