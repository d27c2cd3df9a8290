"""Placements: where norms are applied around a sublayer, and how the residual branch is scaled."""
