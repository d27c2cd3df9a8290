"""Optimizers: one module per family; parameters come in groups by role (matrix, vector, embedding, head)."""
