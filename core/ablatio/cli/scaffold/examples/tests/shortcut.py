import torch

from ablatio import shortcuts
from ablatio.model.context import make_context


def test_weight_one_adds_what_the_layer_before_read():
    ctx = make_context(torch.zeros(1, 3, dtype=torch.long), None, "causal", None, None, torch.float32)
    first, second = (shortcuts.build("two_back", layer=layer) for layer in (0, 1))
    torch.nn.init.ones_(second.weight)
    x, y = torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    torch.testing.assert_close(first(x, ctx), x)
    torch.testing.assert_close(second(y, ctx), y + x)
