"""Evaluations: capability probes made by rules, held-out text, and task files."""
