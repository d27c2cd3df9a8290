"""Launchers: execute the runs of a sweep on this machine, on a Ray cluster, or as Slurm jobs."""
