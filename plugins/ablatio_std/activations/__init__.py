"""Nonlinearities of the feed-forward part: elementwise ones take x, gated ones (gate, up) (Shazeer 2020)."""
