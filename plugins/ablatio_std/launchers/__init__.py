"""Where the runs of a sweep are executed: on this machine, on a Ray cluster, by Slurm."""
