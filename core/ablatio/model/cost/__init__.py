"""Estimate parameters, FLOPs and memory of a config before building it."""
