"""Command line of ablatio, with one module per command."""
