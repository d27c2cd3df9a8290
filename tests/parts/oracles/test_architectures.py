"""Decoder, prefix decoder and encoder against stacks of torch's own pre-norm layers with the same masks."""

import pytest
import torch
from helpers.support import model_config
from torch import nn

from ablatio.model.build import build_model
from ablatio.model.example import Example

V, D, H, FF, SOURCE, LENGTH = 17, 24, 4, 40, 5, 11

# Whether t sees s, in a row whose first SOURCE tokens are the source.
SEES = {
    "causal": lambda t, s: s <= t,
    "prefix": lambda t, s: s <= t or s < SOURCE,
    "encoder": lambda t, s: True,
}


def torchs(layer):
    """One layer of torch with our weights."""
    made = nn.TransformerEncoderLayer(D, H, FF, 0.0, "gelu", batch_first=True, norm_first=True).double()
    qkv = [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]
    state = {f"self_attn.in_proj_{kind}": torch.cat([getattr(p, kind) for p in qkv]) for kind in ("weight", "bias")}
    table = {
        "self_attn.out_proj": layer.self_attn.o_proj,
        "linear1": layer.mlp.up_proj,
        "linear2": layer.mlp.down_proj,
        "norm1": layer.input_layernorm,
        "norm2": layer.post_attention_layernorm,
    }
    for name, part in table.items():
        state |= {f"{name}.{kind}": getattr(part, kind) for kind in ("weight", "bias")}
    made.load_state_dict(state)
    return made


@pytest.mark.oracle("architecture", "torch TransformerEncoderLayer")
@pytest.mark.parametrize("name", SEES)
def test_stack_equals_torchs_with_the_same_mask(name):
    options = {"norm": "layernorm", "activation": "gelu", "position": "learned", "bias": True, "d_ff": FF}
    config = model_config(architecture=name, d_model=D, n_layers=3, n_heads=H, match="none", **options)
    model = build_model(config, V).double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    tokens, stack = torch.randint(0, V, (2, LENGTH)), model.model
    hidden = torch.tensor([[not SEES[name](t, s) for s in range(LENGTH)] for t in range(LENGTH)])
    x = stack.embed_tokens(tokens) + stack.position.table.weight[:LENGTH]
    for layer in stack.layers:
        x = torchs(layer)(x, src_mask=hidden)
    expected = stack.norm(x)
    if name == "prefix":
        source, inputs = tokens[:, :SOURCE], tokens[:, SOURCE:]
        ours, expected = model.hidden(Example(inputs, inputs, source=source)), expected[:, SOURCE:]
    else:
        ours = model.hidden(Example(tokens, tokens))
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
