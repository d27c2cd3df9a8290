"""From documents to batches: sources -> split -> tokenizer -> token cache -> windows in an order of (seed, epoch)."""
