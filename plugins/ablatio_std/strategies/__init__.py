"""Strategies: how several devices share one run."""
