"""Overrides of stacks whose layers differ, by what is special about them."""

STACKS = {
    "linear and full": ["layers.attention=[gated_deltanet*3,mha]"],
    "local and global": ["layers.attention=[{sliding*3: {window: 4}},mqa]", "layers.position=[rope*3,none]"],
    "experts, no first attention": ["layers.at.attention={0: none}", "layers.at.mlp={1: moe, -1: moe}"],
    "everything": [
        "layers.norm=[layernorm,rmsnorm]", "layers.activation=[gelu,swiglu]", "layers.placement=[pre,sandwich]",
        "layers.block=[parallel,sequential]", "layers.position=[alibi,{rope: {base: 500}},none]",
    ],
    "positions that rotate cached keys": ["layers.position=[{rope: {scaling: dynamic, original_max_len: 8}},alibi]"],
    "no attention": ["attention=none"],
    "no feed-forward": ["mlp=none"],
    "macaron without some": ["block=macaron", "layers.at.mlp={1: none}", "layers.at.attention={2: none}"],
    "two feed-forward parts with a state in a layer": ["block=macaron", "mlp=canon"],
    "a skip over positions": ["block=unet", "layers.position=[rope,alibi]"],
    "values of the first layer": ["attention=value_residual", "layers.position=[rope,none]"],
}  # fmt: skip
