"""Files that last: atomic writes, digests, checkpoints, caches' paths, pretrained models."""
