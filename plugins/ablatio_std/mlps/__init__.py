"""Feed-forward layers: dense ones and mixtures of experts."""
