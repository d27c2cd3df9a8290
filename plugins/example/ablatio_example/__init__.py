"""Parts for ablatio by somebody else: every module in this package is imported, so a new part is a new file."""
