"""Data, from documents to batches: source -> split -> tokenizer -> token cache -> windows ordered by (seed, epoch)."""
