"""Decoding: sampling with the KV cache, rollouts, shared prompts."""
