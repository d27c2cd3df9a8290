"""Rewards: rules on the text of an answer, a trained model, weighted sums, per-step rewards and comparisons."""
