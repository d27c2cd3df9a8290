"""Durable files: atomic writes, digests, checkpoints, the paths of caches, pretrained models."""
