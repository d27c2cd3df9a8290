"""Loggers: write a run's metrics to a table, or to the folders and databases of other tools.  All work offline."""
