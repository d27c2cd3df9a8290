"""Tokenizers: bytes, symbols and byte-level BPE trained on the corpus (trained), and those of existing models."""
