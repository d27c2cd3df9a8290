"""Rewards: rules that look at a text, a trained model, sums of several, and judges of single steps."""
