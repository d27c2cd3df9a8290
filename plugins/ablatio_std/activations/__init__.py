"""Activation functions of the feed-forward layers: elementwise ones take x, gated ones (gate, up) (Shazeer 2020)."""
