"""Objectives: hidden text can be restored, rates are the papers', packed documents do not affect one another."""

import itertools
import re
from collections import Counter

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from helpers.support import model_config
from hypothesis import given, settings

from ablatio.model.build import build_model
from ablatio.model.context import make_context
from ablatio.model.cost.parameters import measure
from ablatio.model.example import PADDING, Example, joined, positions_in_documents
from ablatio.registry.kinds import objectives

V, EOS = 200, 0


def made(name, max_len=512, **knobs):
    return objectives.build(name, knobs, vocab_size=V, eos=EOS, max_len=max_len)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def text(length, seed=0, rows=1):
    tokens = torch.randint(1, V, (rows, length), generator=generator(seed))
    tokens[:, 0] = EOS
    return tokens


def restored(source, targets):
    """The document, from a source with sentinels and a target with each sentinel followed by its span."""
    spans, current = {}, None
    for token in targets:
        if token >= V:
            current = spans.setdefault(token, [])
        elif current is not None:
            current.append(token)
    return [t for token in source for t in (spans[token] if token >= V else [token])]


lengths = st.integers(8, 300)
rates = st.floats(0.05, 0.8)
means = st.floats(1, 20)


@pytest.mark.oracle("objective=span_corruption", "its inverse restores the document")
@settings(max_examples=60, deadline=None)
@given(lengths, rates, means, st.integers(0, 10**6))
def test_span_corruption_can_be_inverted(length, rate, mean, seed):
    document = text(length, seed)
    part = made("span_corruption", max_len=4096, rate=rate, mean_span=mean, sentinels=400)
    example = part(document, None, generator(seed))
    source, targets = example.source[0].tolist(), example.targets[0].tolist()
    assert targets[-1] == EOS
    assert restored(source, targets[:-1]) == document[0].tolist()
    assert example.inputs[0].tolist() == [EOS, *targets[:-1]]
    hidden = sum(t < V for t in targets[:-1])
    assert hidden == min(max(round(length * rate), 1), length - 1)  # T5's random_spans_noise_mask
    marks = [t for t in source if t >= V]
    assert marks == list(range(V, V + len(marks))) == [t for t in targets if t >= V]
    assert len(marks) == min(max(round(hidden / mean), 1), hidden, length - hidden)
    assert source[0] < V and not any(a >= V and b >= V for a, b in itertools.pairwise(source))


@pytest.mark.oracle("objective=span_corruption", "lengths of a random partition's parts")
def test_span_lengths_have_the_distribution_of_a_random_partition():
    """For 30 hidden tokens in 10 spans, P(length of the first = k) = C(29 - k, 8) / C(29, 9)."""
    from math import comb

    part, counts = made("span_corruption"), Counter()
    for seed in range(3000):
        targets = part(text(200, seed), None, generator(seed)).targets[0].tolist()
        counts[targets.index(V + 1) - 1] += 1
    for k in range(1, 6):
        expected = comb(29 - k, 8) / comb(29, 9)
        assert abs(counts[k] / 3000 - expected) < 5 * (expected * (1 - expected) / 3000) ** 0.5


@pytest.mark.oracle("objective=blank_infilling", "its inverse restores the document")
@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(0, 10**6), st.booleans())
def test_blank_infilling_can_be_inverted(length, seed, shuffle):
    document = text(length, seed)
    example = made("blank_infilling", max_len=4096, shuffle=shuffle)(document, None, generator(seed))
    inputs, targets = example.inputs[0].tolist(), example.targets[0].tolist()
    spans = []  # each sentinel followed by its span, without end tokens
    for given_token, asked in zip(inputs, targets, strict=True):
        if given_token >= V:
            spans.append(given_token)
        assert asked == EOS or asked < V
        if asked != EOS:
            spans.append(asked)
    assert restored(example.source[0].tolist(), spans) == document[0].tolist()
    order = [t for t in inputs if t >= V]
    assert sorted(order) == list(range(V, V + len(order)))
    if not shuffle:
        assert order == sorted(order)
    assert targets.count(EOS) == len(order) and all(t >= V or t == targets[i - 1] for i, t in enumerate(inputs) if i)


@pytest.mark.oracle("objective=prefix_lm", "its inverse restores the document")
@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(0, 10**6), st.sampled_from([None, 0.25, 0.9]))
def test_prefix_and_continuation_form_the_document(length, seed, rate):
    document = text(length, seed)
    example = made("prefix_lm", max_len=4096, rate=rate)(document, None, generator(seed))
    source, targets = example.source[0].tolist(), example.targets[0].tolist()
    assert source + targets == document[0].tolist() and example.inputs[0].tolist() == [EOS, *targets[:-1]]
    if rate is not None:
        assert abs(len(targets) - rate * length) <= 1


@pytest.mark.oracle("objective=lm", "pairs of adjacent tokens, one by one")
@pytest.mark.parametrize("packed", [False, True])
def test_lm_targets_are_the_next_tokens(packed):
    tokens = text(30, rows=3)
    segments = (torch.arange(30) >= torch.tensor([[7], [20], [29]])).long() if packed else None
    example = made("lm")(tokens, segments, generator())
    pairs = zip(example.inputs.flatten().tolist(), example.targets.flatten().tolist(), strict=True)
    assert list(pairs) == [pair for row in tokens.tolist() for pair in itertools.pairwise(row)]
    assert example.weights is None and example.source is None
    assert not packed or example.segments.tolist() == [row[:-1] for row in segments.tolist()]


@pytest.mark.oracle("objective=text_infilling", "its source as a regular expression that matches the document")
def test_text_infilling_targets_the_whole_document():
    document = text(200)
    example = made("text_infilling")(document, None, generator())
    assert example.targets[0].tolist() == document[0].tolist()
    source = example.source[0].tolist()
    assert set(source) - set(document[0].tolist()) == {V} and source.count(V) == 20  # 60 of 200, in spans of 3
    assert len(source) == 200 - 60 + 20
    letters = "".join(chr(0x4E00 + t) for t in document[0].tolist())
    assert re.fullmatch("".join(".+" if t == V else chr(0x4E00 + t) for t in source), letters)


@pytest.mark.oracle("objective=mixture_of_denoisers", "shares and rates of the paper's table 1")
def test_the_mixture_draws_its_seven_denoisers_uniformly():
    """R has 2, S 1 and X 4 of the 7 denoisers (arXiv:2205.05131, table 1), each with its share of hidden tokens."""
    part, modes, hidden = made("mixture_of_denoisers"), Counter(), {}
    for seed in range(1400):
        example = part(text(256, seed), None, generator(seed))
        mode = "RSX"[int(example.source[0, 0]) - V - 100]
        asked = [t for t in example.targets[0].tolist() if t < V]
        modes[mode] += 1
        hidden.setdefault(mode, set()).add(round(len(asked) / 256, 2))
    for mode, share in {"R": 2 / 7, "S": 1 / 7, "X": 4 / 7}.items():
        assert abs(modes[mode] / 1400 - share) < 5 * (share * (1 - share) / 1400) ** 0.5
    assert hidden == {"R": {0.15}, "S": {0.25}, "X": {0.15, 0.5}}


@pytest.mark.oracle("objective=masked_lm", "shares of the paper")
def test_masked_lm_has_the_shares_of_bert():
    part, tokens = made("masked_lm"), text(401, rows=200)
    example = part(tokens, None, generator())
    asked = example.weights.bool()
    assert torch.equal(example.targets, tokens[:, 1:]) and (asked.sum(1) == 60).all()
    same = example.inputs == example.targets
    assert same[~asked].all()
    n = int(asked.sum())
    masked, kept = int((example.inputs[asked] == V).sum()), int(same[asked].sum())
    assert abs(masked / n - 0.8) < 5 * (0.16 / n) ** 0.5
    assert abs(kept / n - (0.1 + 0.1 / V)) < 5 * (0.09 / n) ** 0.5


@pytest.mark.oracle("objective=fim", "its inverse restores the document")
@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(0, 10**6), st.sampled_from([0.0, 1.0]))
def test_fill_in_the_middle_can_be_inverted(length, seed, spm):
    document = text(length, seed)
    long = torch.cat([document, torch.full((1, 3), 7)], dim=1)  # room for the three added tokens
    example = made("fim", rate=1.0, spm=spm)(
        long, torch.cat([torch.zeros_like(document), torch.ones(1, 3, dtype=torch.long)], 1), generator(seed)
    )
    row = [*example.inputs[0].tolist(), int(example.targets[0, -1])][: length + 3]
    pre, suf, mid = V, V + 1, V + 2
    a, b, c = (row.index(t) for t in (pre, suf, mid))
    assert row[0] == EOS and a == 1
    if spm:
        assert b == 2
        suffix, rest = row[b + 1 : c], row[c + 1 :]
        assert [EOS, *rest, *suffix] == document[0].tolist()
    else:
        prefix, suffix, middle = row[a + 1 : b], row[b + 1 : c], row[c + 1 :]
        assert [EOS, *prefix, *middle, *suffix] == document[0].tolist()


PAIRS = ["prefix_lm", "span_corruption", "blank_infilling", "text_infilling", "mixture_of_denoisers"]


def alone(example, row, number):
    """One document of a packed example, in its own row."""
    s, t = example.source_segments[row] == number, example.segments[row] == number
    cut = lambda x, m: x[row, m][None]  # noqa: E731
    weights = None if example.weights is None else cut(example.weights, t)
    return Example(cut(example.inputs, t), cut(example.targets, t), weights, source=cut(example.source, s))


@pytest.mark.parametrize("architecture", ["causal", "prefix", "encoder_decoder"])
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("position", ["rope", "learned", "alibi"])
def test_packed_documents_have_the_same_losses_as_alone(name, architecture, position):
    config = model_config(architecture=architecture, objective=name, position=position, norm="layernorm")
    model = build_model(config, V).double().eval()
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.3)
    tokens, segments = text(60, rows=3), torch.zeros(3, 60, dtype=torch.long)
    segments[0, 25:] = 1
    segments[1, 10:] = 1
    segments[1, 40:] = 2
    segments[2, 3:] = 1  # a piece of three tokens is left out, so this row is shorter
    example = made(name, max_len=64)(tokens, segments, generator(4))
    losses = model.token_losses(example)
    filler = torch.cat([example.source_segments, example.segments], dim=1) == PADDING
    assert filler.any(), "rows of equal length would not test padding"
    for row in range(3):
        for number in set(example.segments[row].tolist()) - {PADDING}:
            here = example.segments[row] == number
            expected = model.token_losses(alone(example, row, number))[0]
            torch.testing.assert_close(losses[row, here], expected, rtol=1e-9, atol=1e-9)
    loss = model.loss(example)
    weights = (example.segments >= 0).double() if example.weights is None else example.weights.double()
    torch.testing.assert_close(loss.total, (losses * weights).sum())
    loss.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_prefix_mask_of_a_packed_row():
    """Token t attends to s if both are in one document and s is earlier or in the prefix, pair by pair."""
    tokens, segments = text(40), torch.zeros(1, 40, dtype=torch.long)
    segments[0, 18:] = 1
    row = joined(made("prefix_lm", max_len=64)(tokens, segments, generator(1)))
    ctx = make_context(row.tokens, None, "causal", row.segments, None, torch.float64, opened=row.opened)
    for t in range(row.tokens.shape[1]):
        for s in range(row.tokens.shape[1]):
            expected = bool(row.segments[0, t] == row.segments[0, s] and (s <= t or row.opened[0, s]))
            assert bool(ctx.visible[0, 0, t, s]) == expected


def test_positions_count_within_a_document_even_if_it_is_split():
    segments = torch.tensor([[0, 0, 1, 1, 0, 1, 0, -1], [2, 2, 2, 2, 0, 0, 0, 0]])
    expected = [[int((row[:i] == row[i]).sum()) for i in range(8)] for row in segments]
    assert positions_in_documents(segments).tolist() == expected


@pytest.mark.oracle("objective=multi_token", "targets one by one, and cross-entropy of the heads' logits by hand")
@pytest.mark.parametrize("packed", [False, True])
def test_multi_token_targets_and_loss(packed):
    tokens, segments = text(13, rows=2), None
    if packed:
        tokens[:, 5] = EOS
        segments = torch.tensor([[0] * 5 + [1] * 8] * 2)
    example = made("multi_token", ahead=3, weight=0.5)(tokens, segments, generator())
    plain = made("lm")(tokens, segments, generator())
    assert torch.equal(example.inputs, plain.inputs) and torch.equal(example.targets, plain.targets)
    for row, t, i in itertools.product(range(2), range(12), (2, 3)):
        weight = float(example.further_weights[row, t, i - 2])
        # Documents at 0-4 and 5-12: the last target of the first is the token that opens the second.
        end = 5 if packed and t < 5 else 12
        assert weight == (0.5 if t + i <= end else 0.0)
        if weight:
            assert example.further[row, t, i - 2] == tokens[row, t + i]

    config = model_config(objective={"name": "multi_token", "ahead": 3, "weight": 0.5}, n_layers=3)
    model = build_model(config, V).double().eval()
    total, count, measures = model.loss(example)
    stack = model.model
    ctx = make_context(example.inputs, stack.position, "causal", example.segments, None, torch.float64)
    trunk = stack.layers[1](stack.layers[0](stack.embed_tokens(example.inputs), ctx), ctx)
    expected = 0.0
    for i, last in enumerate([stack.layers[2], *stack.further], start=1):
        logs = model.lm_head(stack.norm(last(trunk, ctx))).log_softmax(-1)
        for row, t in itertools.product(range(2), range(12)):
            if i == 1 or example.further_weights[row, t, i - 2]:
                expected -= (1.0 if i == 1 else 0.5) * logs[row, t, tokens[row, t + i]]
        if i == 1:
            torch.testing.assert_close(measures["train/next_token"], expected.detach() / 24, rtol=1e-10, atol=0)
    assert count == 24
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=0)
    total.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_extra_layers_of_multi_token_do_not_change_scores():
    config = model_config(objective={"name": "multi_token", "ahead": 2}, n_layers=3)
    model, plain = build_model(config, V).eval(), build_model(model_config(n_layers=3), V).eval()
    example = made("multi_token", ahead=2)(text(9), None, generator())
    assert torch.equal(model.token_losses(example), plain.token_losses(example))
    layer = sum(p.numel() for p in plain.model.layers[2].parameters())
    assert measure(config, V).parameters - measure(model_config(n_layers=3), V).parameters == layer
    # One layer fewer and one copied last layer: the same parameters, and one more product with the output matrix.
    fewer = measure(model_config(objective={"name": "multi_token", "ahead": 2}, n_layers=2), V)
    more = fewer.flops_per_token - measure(model_config(n_layers=3), V).flops_per_token
    assert fewer.parameters == measure(model_config(n_layers=3), V).parameters and more == 2 * 32 * V


@pytest.mark.oracle("objective=distillation", "torch kl_div and cross_entropy of the full logits in float64")
@pytest.mark.parametrize("weighted", [False, True])
def test_distillation_equals_its_formula(weighted):
    """Loss and all gradients, for models of different widths, with target weights and without."""
    part = made("distillation", temperature=3.0, hard=0.3)
    student = build_model(model_config(d_model=16), V).double()
    teacher = build_model(model_config(d_model=32, position="alibi", tied=False), V, seed=1).double()
    for p in (*student.parameters(), *teacher.parameters()):
        p.data += 0.2 * torch.randn_like(p)
    part.learn_from(teacher)
    example = part(text(41, rows=3), None, generator())
    example.weights = torch.rand(3, 40).double() if weighted else None
    w = torch.ones(120).double() if example.weights is None else example.weights.flatten()
    total, count, measures = part.loss(student, example)
    total.backward()
    ours = [p.grad.clone() for p in student.parameters()]
    assert count == w.sum() and all(p.grad is None for p in teacher.parameters())

    student.zero_grad()
    logits, known = student(example.inputs).flatten(0, 1), teacher(example.inputs).flatten(0, 1).detach()
    soft = F.kl_div(
        (logits / 3).log_softmax(-1), (known / 3).log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)  # fmt: skip
    hard = F.cross_entropy(logits, example.targets.flatten(), reduction="none")
    expected = (w * (0.3 * hard + 0.7 * 9 * soft)).sum()
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(measures["train/divergence"], ((w * soft).sum() / w.sum()).detach(), rtol=1e-10, atol=0)
    expected.backward()
    for a, b in zip(ours, [p.grad for p in student.parameters()], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_distillation_from_an_equal_model_has_zero_gradient():
    part, model = made("distillation", hard=0.0), build_model(model_config(), V).double()
    part.learn_from(build_model(model_config(), V).double())
    total, _, measures = part.loss(model, part(text(30), None, generator()))
    total.backward()
    assert abs(measures["train/divergence"]) < 1e-14 and all(p.grad.abs().max() < 1e-13 for p in model.parameters())


def test_chunked_divergence_equals_the_whole():
    from ablatio.model.cross_entropy import linear_divergence

    a, b, c, d = (torch.randn(n, 5).double() for n in (23, 11, 23, 11))
    whole, parts = (linear_divergence(a, b, c, d, temperature=2.0, chunk=n) for n in (64, 7))
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=0)
