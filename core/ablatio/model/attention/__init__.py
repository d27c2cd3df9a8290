"""Softmax attention: the module, its kernels, and blocked patterns."""
