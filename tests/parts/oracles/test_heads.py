"""Heads against their formulas in Python's numbers, and models with them against plain logits."""

import math

import pytest
import torch
from helpers.support import model_config
from torch.nn.functional import cross_entropy

from ablatio.model.build import build_model
from ablatio.model.decoding.generate import Sampling, generate
from ablatio.model.example import Example
from ablatio.registry.kinds import heads

V = 23
FORMULAS = {
    "plain": lambda z: z,
    "softcap": lambda z: 30 * (1 - 2 / (math.exp(2 * z / 30) + 1)),
    "isru": lambda z: z * 15 / math.hypot(15, z),
    "sigmoid": lambda z: 23 / (1 + math.exp(-(z + 5) / 7.5)),
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.oracle("head", "the formula, number by number")
def test_each_logit_is_mapped_by_the_formula(name: str) -> None:
    logits = torch.linspace(-60, 60, 49, dtype=torch.float64)
    wanted = torch.tensor([FORMULAS[name](z) for z in logits.tolist()], dtype=torch.float64)
    torch.testing.assert_close(heads.build(name)(logits), wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.oracle("head=softcap", "the softcapping of transformers' Gemma2ForCausalLM")
def test_softcap_is_that_of_gemma_2() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    theirs = Gemma2Config(vocab_size=V, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5, **sizes)
    model, tokens = Gemma2ForCausalLM(theirs).eval(), torch.arange(6)[None]
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
        products = model.lm_head(model.model(tokens).last_hidden_state)
        torch.testing.assert_close(heads.build("softcap", {"cap": 0.5})(products), model(tokens).logits)


@pytest.mark.oracle("head=sigmoid", "head=softcap, which it is without a shift")
def test_sigmoid_without_a_shift_is_softcap_raised_by_the_cap() -> None:
    logits = torch.linspace(-80, 80, 33, dtype=torch.float64)
    raised = heads.build("sigmoid", {"scale": 60.0, "shift": 0.0, "width": 15.0})(logits)
    torch.testing.assert_close(raised, heads.build("softcap")(logits) + 30)


@pytest.mark.parametrize("name", [n for n in FORMULAS if n != "plain"])
@pytest.mark.parametrize("objective", ["lm", "multi_token"])
def test_a_model_trains_scores_and_decodes_by_mapped_logits(name: str, objective: str) -> None:
    """Loss with its gradients, scores and greedy decoding, all against logits that the test maps itself."""
    torch.manual_seed(0)
    model = build_model(model_config(head=name, objective=objective, n_layers=2), V).double()
    for p in model.parameters():
        p.data += 0.5 * torch.randn_like(p)
    rows = torch.randint(1, V, (2, 9))
    inputs, targets = rows[:, :-1], rows[:, 1:]
    head = heads.build(name)
    logits = head(model.lm_head(model.model(inputs)))
    torch.testing.assert_close(model(inputs), logits, rtol=1e-12, atol=1e-12)
    wanted = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    loss = model.loss(Example(inputs, targets)).total
    torch.testing.assert_close(loss, wanted)
    weights = [p for n, p in model.named_parameters() if "further" not in n]
    for found, expected in zip(torch.autograd.grad(loss, weights), torch.autograd.grad(wanted, weights), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    scores = model.token_losses(Example(inputs, targets))
    torch.testing.assert_close(scores.sum(), wanted.detach())
    (text,) = generate(model.eval(), [[3, 4]], 1, Sampling(temperature=0.0))
    assert text[0] == int(model(torch.tensor([[3, 4]]))[0, -1].argmax())


def test_the_teacher_keeps_its_own_head() -> None:
    from ablatio.model.cross_entropy import linear_divergence

    torch.manual_seed(1)
    x, w, y, u = (torch.randn(n, 6, dtype=torch.float64) for n in (5, V, 5, V))
    own, other = heads.build("softcap", {"cap": 2.0}), heads.build("isru", {"cap": 1.0})
    found = linear_divergence(x, w, y, u, temperature=2.0, logit_map=own, other_map=other, chunk=2)
    p, q = ((z / 2).log_softmax(-1) for z in (own(x @ w.T), other(y @ u.T)))
    torch.testing.assert_close(found, (q.exp() * (q - p)).sum())
