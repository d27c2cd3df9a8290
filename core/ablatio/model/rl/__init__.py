"""Quantities of policy methods: log-probabilities of tokens, rewards of answers, KL estimates."""
