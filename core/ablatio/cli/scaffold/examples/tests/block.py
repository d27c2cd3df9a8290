from ablatio import blocks
from ablatio.testing import tiny_models


def test_the_feed_forward_part_comes_first():
    net, order = tiny_models.model(blocks["mlp_first"]), []
    for name, module in net.model.layers[0].named_children():
        if name in ("mlp", "self_attn"):
            module.register_forward_hook(lambda *_, name=name: order.append(name))
    net(tiny_models.tokens())
    assert order == ["mlp", "self_attn"]
