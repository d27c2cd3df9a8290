"""Norms over the last axis: LayerNorm and RMSNorm families, and elementwise replacements for a norm."""
