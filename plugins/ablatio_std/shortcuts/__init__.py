"""What jumps over layers: skips, the embedding in every layer, averages of all layers, embeddings as values."""
