"""Positional encodings: none, vectors added to embeddings, rotations of queries and keys, biases, scores."""
