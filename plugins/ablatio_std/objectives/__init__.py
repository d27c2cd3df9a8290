"""Objectives: which tokens the model predicts, and from which."""
