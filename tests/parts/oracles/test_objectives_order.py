"""Token order prediction by hand, and masked diffusion's bound, which an exact model meets."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from helpers.runs import TINY, ablatio, summary
from helpers.support import model_config

from ablatio.model.build import build_model
from ablatio.model.cost.parameters import measure
from ablatio.registry.kinds import objectives

V = 20


def made(name, **knobs):
    return objectives.build(name, knobs, vocab_size=V, eos=0, max_len=32)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.oracle("objective=token_order", "a search for the next occurrence of each token, in float64")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [1, 4, 16])
def test_token_order_by_hand(packed, window):
    tokens, segments = torch.randint(1, 6, (2, 13), generator=generator()), None
    if packed:
        tokens[:, 5] = 0
        segments = torch.tensor([[0] * 5 + [1] * 8] * 2)
    knobs = {"weight": 0.5, "window": window}
    part, config = made("token_order", **knobs), model_config(objective={"name": "token_order", **knobs})
    model, example = build_model(config, V).double().eval(), made("lm")(tokens, segments, generator())
    assert torch.equal(part(tokens, segments, generator()).inputs, example.inputs)
    total, count, measures = part.loss(model, example)
    hidden = model.hidden(example)
    logs, order = (head(hidden).log_softmax(-1) for head in (model.lm_head, model.further_heads[0]))
    next_loss, order_loss = 0.0, 0.0
    for row, t in itertools.product(range(2), range(12)):
        next_loss -= logs[row, t, tokens[row, t + 1]]
        # Documents at 0-4 and 5-12: the last target of the first is the token that opens the second.
        end = min(t + window, 5 if packed and t < 5 else 12)
        distances = {}
        for s in range(end, t, -1):
            distances[int(tokens[row, s])] = s - t
        q = torch.tensor([-float(d) for d in distances.values()]).double().softmax(0)
        order_loss -= sum(w * order[row, t, v] for w, v in zip(q, distances, strict=True))
    assert count == 24
    torch.testing.assert_close(total, next_loss + 0.5 * order_loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(measures["train/token_order"], order_loss.detach() / 24, rtol=1e-6, atol=0)
    total.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_the_second_head_is_counted_and_does_not_score():
    config, plain = (model_config(objective=name) for name in ("token_order", "lm"))
    one, other = build_model(config, V).eval(), build_model(plain, V).eval()
    tokens = torch.randint(1, V, (2, 9))
    assert torch.equal(one(tokens), other(tokens))
    more, less = measure(config, V), measure(plain, V)
    assert more.parameters - less.parameters == 32 * V
    assert more.flops_per_token - less.flops_per_token == 2 * 32 * V


def test_a_run_with_a_second_head(tmp_path: Path, text_file: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "objective=token_order"]
    run = ablatio(["train", *settings, "train.steps=2", "name=run"], tmp_path / "log")
    assert run.code == 0, run.err
    assert summary(tmp_path / "run")["after"]["loss"] < 6


@pytest.mark.oracle("objective=masked_diffusion", "-log p(text) under a known distribution, whose exact model meets it")
@pytest.mark.parametrize("length", [2, 4])
def test_an_exact_model_meets_the_bound(length):
    """For a model that knows p(x_i | visible tokens), the expected sum of weighted losses is -log p(x)."""
    p = torch.rand((2,) * length, generator=generator(3)).double()
    p /= p.sum()
    x, rows = [1, 0, 0, 1][:length], 40_000
    tokens = torch.tensor([[0, *x]]).expand(rows, -1)
    example = made("masked_diffusion", least=0.001)(tokens, None, generator(1))
    hidden = example.inputs == V
    assert torch.equal(example.weights > 0, hidden) and (example.inputs[~hidden] == example.targets[~hidden]).all()
    losses = torch.zeros(rows, length).double()
    for pattern in itertools.product((False, True), repeat=length):
        chosen = (hidden == torch.tensor(pattern)).all(1)
        seen = p[tuple(slice(None) if h else v for h, v in zip(pattern, x, strict=True))]
        places = [i for i, h in enumerate(pattern) if h]
        for axis, i in enumerate(places):
            own = seen.movedim(axis, 0).flatten(1).sum(1) if len(places) > 1 else seen
            losses[chosen, i] = -math.log(own[x[i]] / own.sum())
    sums = (losses * example.weights).sum(1)
    assert abs(sums.mean() + math.log(p[tuple(x)])) < 4 * sums.std() / rows**0.5 + 0.01
    assert abs(example.weights.sum() / example.weights.numel() - 1) < 0.05  # the expectation of 1 / t where hidden


def test_rates_are_spread_evenly_over_the_documents():
    segments = torch.arange(8).repeat_interleave(8)[None].expand(16, -1)  # 128 documents
    example = made("masked_diffusion", least=0.01)(torch.randint(1, V, (16, 64)), segments, generator())
    rates = []
    for row, document in itertools.product(range(16), range(8)):
        here = example.weights[row][example.segments[row] == document]
        found = {round(1 / w, 5) for w in here[here > 0].tolist()}
        assert len(found) <= 1
        rates += found
    cells = [int(128 * (t - 0.01) / 0.99 + 1e-3) for t in rates]
    assert len(set(cells)) >= len(cells) - 2  # at most one document in each 128th
