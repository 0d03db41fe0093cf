"""Configuration: the settings of a run, the command line made from them, and the units that they take."""
