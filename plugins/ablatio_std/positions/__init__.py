"""How the model knows where a token stands: nothing, added vectors, turned queries and keys, biases, scores."""
