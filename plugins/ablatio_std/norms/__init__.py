"""Norms over the last axis, of any width: with a mean (layer), with a length alone (rms), and pointwise stand-ins."""
