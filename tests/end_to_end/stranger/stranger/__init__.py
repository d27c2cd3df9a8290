"""Twenty parts, one of each kind, written with `ablatio show KIND --author` and nothing else."""
