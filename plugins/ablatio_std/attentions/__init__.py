"""Attentions: softmax over all keys and over some of them, kernels and recurrences, short convolutions."""
