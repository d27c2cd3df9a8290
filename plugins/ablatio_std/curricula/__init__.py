"""Curricula: how sources and difficulty change over training."""
