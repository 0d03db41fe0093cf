"""Data: formats, split and normalisation of samples, and the order in which they are read."""
