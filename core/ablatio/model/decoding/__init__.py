"""Text from a model: sampling with the KV cache, rollouts, shared prompts."""
