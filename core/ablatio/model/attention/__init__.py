"""Softmax attention: the base module, the choice of kernel, and blockwise attention on a CPU."""
