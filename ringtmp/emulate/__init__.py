"""Emulated nodes, and what each layer costs on a node."""
