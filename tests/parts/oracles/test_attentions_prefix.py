"""A bidirectional prefix followed by token-by-token decoding gives the result of one full pass."""

import pytest
import torch
from helpers.support import model_config

from ablatio.model.build import build_model
from ablatio.model.kv_cache import KVCache
from ablatio.registry.kinds import attentions
from ablatio.testing import tiny_models


def may_open(name):
    return attentions[name].facts["bidirectional"] and attentions[name].facts["caches"]


@pytest.mark.parametrize("name", [n for n in attentions.names() if may_open(n)])
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_a_bidirectional_prefix_and_the_cache(name, padded):
    sizes = {"d_model": 16, "n_layers": 2, "n_heads": 4, "max_len": 48, "tied": False}
    model = build_model(model_config(attention=name, architecture="prefix", **sizes), tiny_models.VOCAB).double().eval()
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.4)
    tokens, cache, pads = tiny_models.tokens(2, 30), KVCache(), (0, 3 if padded else 0)
    segments = torch.tensor([[-1] * pad + [0] * (12 - pad) for pad in pads]) if padded else None
    steps = [model.read(tokens[:, :12], segments, cache)[:, None]]
    steps += [model.extend(t, cache)[:, None] for t in tokens[:, 12:].split(1, dim=1)]
    begun = torch.cat([tokens[:, :12], tokens.new_full((2, 1), model.eos), tokens[:, 12:]], dim=1)
    for row, pad in enumerate(pads):  # the prefix is followed by the start token of the target
        opened = (torch.arange(31 - pad) < 12 - pad)[None]
        alone = model.logits(model.model(begun[row : row + 1, pad:], opened=opened))[0, 12 - pad :]
        torch.testing.assert_close(torch.cat(steps, dim=1)[row], alone, rtol=1e-8, atol=1e-9)
