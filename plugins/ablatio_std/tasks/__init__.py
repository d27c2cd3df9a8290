"""Tasks: what a run learns from.  One module each."""
