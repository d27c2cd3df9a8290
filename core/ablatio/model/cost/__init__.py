"""Parameters, FLOPs and memory of a config, counted before it is built."""
