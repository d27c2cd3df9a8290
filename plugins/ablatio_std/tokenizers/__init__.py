"""Tokenizers: those that need nothing or learn from the corpus (trained), and those of models that exist."""
