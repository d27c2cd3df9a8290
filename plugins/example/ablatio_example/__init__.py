"""Example plugin for ablatio.  Every module of this package is imported, so that a new part only needs a new file."""
