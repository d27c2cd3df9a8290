"""Contract tests of the kinds on the parts of this distribution; then each part against an independent formula."""

import math

import pytest
import torch
from torch import nn

from ablatio import alignments, norms, pefts, positions, rewards
from ablatio.model.peft.adapters import adapted
from ablatio.model.rl.answers import Answer
from ablatio.testing import contract_tests

ABLATIO_DIST = "ablatio-example"
globals().update(contract_tests())


def test_l1norm_gives_normal_inputs_unit_variance():
    """sqrt(pi / 2) mean|x| estimates the standard deviation of normal numbers, as RMSNorm's root mean square does."""
    x = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0))
    y = norms.build("l1norm", d_model=4096)(x)
    torch.testing.assert_close(y.std(-1), torch.ones(64), atol=0.03, rtol=0)


def test_gaussian_bias_is_the_log_of_a_normal_density():
    """Up to its normalizer, the bias is the log-density of N(query position, sigma)."""
    bias = positions.build("gaussian", {"sigma": 3.0}, n_heads=2).bias(torch.arange(6), torch.arange(6))
    for head, sigma in enumerate((3.0, 6.0)):
        density = torch.distributions.Normal(4.0, sigma)
        expected = density.log_prob(torch.arange(6.0)) + math.log(sigma * math.sqrt(2 * math.pi))
        torch.testing.assert_close(bias[head, 4].detach(), expected)


PAIRS = torch.tensor([[-9.0, -12.0, -8.0, -11.0], [-9.0, -12.0, -10.0, -11.0], [-5.0, -5.0, -6.0, -4.0]]).double()


def of_pairs(method, pairs):
    """(loss, metrics) of a method on rows of (chosen, rejected, ref_chosen, ref_rejected)."""
    words = ("chosen", "rejected", "ref_chosen", "ref_rejected")
    return method.loss(**dict(zip(words, pairs.T, strict=True)))


def test_dpop_equals_its_formula_in_a_loop():
    """Loss and `fallen` metric, pair by pair with math functions."""
    loss, metrics = of_pairs(alignments.build("dpop", {"beta": 0.2, "lam": 3.0}), PAIRS)
    expected = []
    for w, worse, ref_w, ref_worse in PAIRS.tolist():
        margin = (w - ref_w) - (worse - ref_worse) - 3.0 * max(0.0, ref_w - w)
        expected.append(math.log1p(math.exp(-0.2 * margin)))
    assert math.isclose(float(loss), sum(expected) / 3, rel_tol=1e-12)
    assert float(metrics["train/fallen"]) == pytest.approx(1 / 3)


def test_dpop_penalty_raises_the_gradient_of_less_likely_better_answers():
    """The two answers' gradients have the ratio 1 + lam if the better one became less likely, else 1 as in DPO."""
    pairs = PAIRS.clone().requires_grad_()
    of_pairs(alignments.build("dpop", {"lam": 5.0}), pairs)[0].backward()
    ratio = -pairs.grad[:, 0] / pairs.grad[:, 1]
    torch.testing.assert_close(ratio, torch.tensor([6.0, 1.0, 1.0]).double())


def tuned(width: int, **knobs):
    """A model of one linear layer with lora_xs, and its adapter."""
    model = nn.Sequential()
    model.add_module("q_proj", nn.Linear(width, width, bias=False))
    pefts.build("lora_xs", {"targets": ["q_proj"], **knobs}).apply(model, 0)
    return model, next(adapted(model))[2]


def test_lora_xs_with_full_rank_can_represent_any_update():
    """W' = W + U S R V: at full rank, R = (U S)^-1 update V^-1 gives any update."""
    model, core = tuned(6, rank=6, alpha=6.0)
    update, x = torch.randn(6, 6), torch.randn(3, 6)
    core.core.data = torch.linalg.solve(core.left, update) @ torch.linalg.inv(core.right)
    torch.testing.assert_close(model(x), x @ (model.q_proj.weight + update).T, atol=1e-3, rtol=1e-3)


def test_lora_xs_trains_rank_squared_weights_at_any_width():
    """Rank 3 gives 9 trainable weights in a layer of width 8 and of width 64."""
    counts = [sum(p.numel() for p in tuned(width, rank=3)[0].parameters() if p.requires_grad) for width in (8, 64)]
    assert counts == [9, 9]


def test_distinct_is_the_share_of_distinct_bigrams():
    """Texts with known counts of distinct and of all bigrams."""
    reward = rewards.build("distinct", {"n": 2})
    texts = {"a b a b": 2 / 3, "One two three.": 1.0, "no no no no no": 1 / 4, "word": 0.0, "": 0.0}
    assert [reward(Answer("", text)) for text in texts] == pytest.approx(list(texts.values()))
