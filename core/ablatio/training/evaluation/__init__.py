"""Evaluation of a run: its items and metrics, and the file of items."""
