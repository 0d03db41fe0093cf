"""Commands: one module for each, started as `python -m ringtmp NAME`."""
