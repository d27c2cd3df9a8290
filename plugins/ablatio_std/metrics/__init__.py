"""Metrics of evaluations: likelihoods, multiple choice, generated answers, comparisons of answers, training text."""
