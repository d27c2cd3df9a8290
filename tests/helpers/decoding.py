"""Small models whose continuations vary, and decoding jobs for them."""

from typing import Any

import torch

from ablatio.model.decoding.job import DecodingJob, Ending
from ablatio.testing import tiny_models

EOS = 0
LENGTHS = (3, 6, 1, 4)  # of the prompts


def random_model(seed: int, size: float = 0.3) -> Any:
    """The small model with weights so large that its continuations vary."""
    net = tiny_models.model(seed=seed, tied=False).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() == 2:
                p.normal_(0, size, generator=generator)
    return net


def prompts(seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, tiny_models.VOCAB, (n,), generator=generator).tolist() for n in LENGTHS]


def job(net: Any, rows: list[list[int]], new_tokens: int = 12, **more: Any) -> DecodingJob:
    return DecodingJob(net, rows, Ending(new_tokens, (EOS,)), **more)


def ids(found: Any) -> list[list[int]]:
    return [continuations[0].ids for continuations in found]
