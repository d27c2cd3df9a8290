"""Feed-forward parts: dense, and mixtures of experts."""
