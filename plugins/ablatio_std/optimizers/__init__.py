"""Optimizers, one module per family; the parameters come in groups by role (matrix, vector, embedding, head)."""
