"""Data: where samples come from, how they are split and normalised, and who reads them in which order."""
