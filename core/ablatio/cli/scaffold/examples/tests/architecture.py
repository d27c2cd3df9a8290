import torch

from ablatio import architectures
from ablatio.testing import tiny_models


@torch.no_grad()
def test_a_token_changes_nothing_before_it():
    net, tokens = tiny_models.model(architectures["decoder"]).eval(), tiny_models.tokens()
    changed = tokens.clone()
    changed[:, -1] = changed[:, -1] % (tiny_models.VOCAB - 1) + 1
    assert torch.equal(net(tokens)[:, :-1], net(changed)[:, :-1])
