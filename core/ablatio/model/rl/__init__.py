"""What policy methods measure: log-probabilities of tokens, answers, KL estimates."""
