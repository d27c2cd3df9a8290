"""Attentions: softmax over all or some keys, linear and recurrent attention, short convolutions."""
