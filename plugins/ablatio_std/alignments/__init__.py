"""Alignment methods by family: preference pairs, single answers, rankings, and policy-gradient methods."""
