"""Alignment methods, by family: pairs against a reference, answers one by one, rankings, policies."""
