"""How the tokens of a continuation are chosen: greedy, sampled, searched, by two models, best of several."""
