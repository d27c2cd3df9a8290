"""Norms of queries, keys and values: any option of the kind norm, a plugin's too, without a change of older runs."""

from collections.abc import Iterator

import pytest
import torch
from helpers.support import model_config
from torch import Tensor, nn

from ablatio import norms
from ablatio.config.problems import value_problems
from ablatio.errors import UserError
from ablatio.model.attention.softmax_attention import WHOLE
from ablatio.model.build import build_model
from ablatio.registry import kinds

TOKENS = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def halved() -> Iterator[str]:
    """A norm that nobody knew before."""

    @norms.register("halved_norm", paper="doi:10.0/0")
    class HalvedNorm(nn.Module):
        """y = g * x / (2 |x|).  (..., d_model) -> same."""

        def __init__(self, d_model: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(d_model))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * nn.functional.normalize(x, dim=-1) / 2

    yield "halved_norm"
    del norms.entries["halved_norm"], norms._targets["halved_norm"]


def model(**knobs: str) -> nn.Module:
    return build_model(model_config(attention={"name": "mha", **knobs}), 64, seed=1).eval()


@pytest.mark.parametrize("form", ["", WHOLE])
def test_a_new_norm_can_be_every_norm_of_an_attention(halved: str, form: str) -> None:
    made = model(qk_norm=form + halved, v_norm=form + halved)
    attention = made.model.layers[0].self_attn
    assert {type(getattr(attention, f"{n}_norm")).__name__ for n in "qkv"} == {"HalvedNorm"}
    assert attention.q_norm.weight.shape == (32 if form else 8,)
    x = torch.randn(2, 5, 32)
    queries = attention.queries(x)  # (B, H, T, d_head)
    lengths = queries.transpose(1, 2).flatten(2).norm(dim=-1) if form else queries.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.5))
    assert not torch.equal(made(TOKENS), model()(TOKENS))


@pytest.mark.parametrize("name", norms.names())
def test_every_norm_trains_there(name: str) -> None:
    made = model(qk_norm=name, v_norm=f"{WHOLE}{name}").train()
    made(TOKENS).square().mean().backward()
    weights = dict(made.model.layers[0].self_attn.named_parameters())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in weights.values())


def test_the_older_options_keep_their_digits_and_names() -> None:
    """Names of weights as in older checkpoints, and the operations that these options always had, to the last bit."""
    attention = model(qk_norm="rmsnorm", v_norm="whole_layernorm").model.layers[1].self_attn
    assert [n for n, _ in attention.named_parameters() if "norm" in n] == [
        "q_norm.weight", "k_norm.weight", "v_norm.weight", "v_norm.bias",
    ]  # fmt: skip
    x = torch.randn(3, 7, 8)
    assert torch.equal(attention.q_norm(x), x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))
    x = torch.randn(3, 7, 32)
    assert torch.equal(attention.v_norm(x), nn.LayerNorm(32)(x))


def test_what_no_norm_is_called_is_refused_with_the_nearest() -> None:
    knob = kinds.attentions["mha"].knob("qk_norm")
    assert knob is not None
    for value in ("none", "l2", "rmsnorm", "whole_groupnorm"):
        assert not list(value_problems("attention.qk_norm", knob, value))
    (problem,) = value_problems("attention.qk_norm", knob, "whole_rmsnrm")
    assert problem.fix == "attention.qk_norm=whole_rmsnorm"
    (problem,) = value_problems("attention.v_norm", kinds.attentions["mha"].knob("v_norm"), "l2")
    assert "there is no `l2`" in problem.what


def test_a_norm_that_cannot_be_so_narrow_is_refused() -> None:
    with pytest.raises(UserError, match=r"norm=groupnorm cannot stand at model\.layers\.0\.self_attn\.q_norm"):
        build_model(model_config(d_model=16, n_heads=4, attention={"name": "mha", "qk_norm": "groupnorm"}), 64)
