"""Properties that hold for every position with every attention, and every placement with every block."""

import itertools
import math

import pytest
import torch
from helpers.support import model_config

from ablatio.config.schema import effective
from ablatio.errors import UserError
from ablatio.model.build import build_model
from ablatio.model.decoding.shared_prefix import answer_states
from ablatio.model.example import Example
from ablatio.model.kv_cache import KVCache
from ablatio.registry.kinds import attentions, blocks, placements, positions
from ablatio.registry.rules import violated_rules

V, LENGTH = 50, 12
SIZES = {"d_model": 16, "n_layers": 2, "n_heads": 4, "max_len": 16, "tied": False}
DEFAULT = {"position": "rope", "placement": "pre", "attention": "mha", "block": "sequential"}
OPTIONS = [
    *(DEFAULT | {"position": p, "attention": a} for p in positions.names() for a in attentions.names()),
    *(DEFAULT | {"placement": p, "block": b} for p in placements.names() for b in blocks.names()),
]
COMBINATIONS = [options for options in OPTIONS if not violated_rules(effective(model_config(**SIZES, **options)))]


def every(*facts):
    """Combinations whose attention has these facts."""
    fitting = [o for o in COMBINATIONS if all(attentions[o["attention"]].facts[fact] for fact in facts)]
    parametrize = pytest.mark.parametrize("options", fitting, ids=lambda o: "-".join(o.values()))
    return lambda test: pytest.mark.matrix(parametrize(test))


every_combination = every()


def sharp(options, **sizes):
    """A float64 model with far from uniform attention, so that small weights hide no error."""
    model = build_model(model_config(**SIZES | sizes, **options), V).double().eval()
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.4)
    return model


def tokens(rows=3, length=LENGTH):
    """Rows without a repeated token: a choice among keys by content must not depend on how a tie is rounded."""
    return torch.stack([torch.randperm(V)[:length] for _ in range(rows)])


def assert_close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@every_combination
@torch.no_grad()
def test_later_tokens_change_nothing(options):
    model, x = sharp(options), tokens()
    before = model(x)
    for t in (0, 4, LENGTH - 2):
        y = x.clone()
        y[:, t + 1 :] = (y[:, t + 1 :] + 1 + torch.arange(LENGTH - t - 1)) % V
        after = model(y)
        assert torch.equal(after[:, : t + 1], before[:, : t + 1])
        assert not torch.equal(after[:, t + 1 :], before[:, t + 1 :])


@every("takes_segments")
@torch.no_grad()
def test_packed_documents_equal_single_ones(options):
    model, x = sharp(options), tokens(2)
    segments = torch.tensor([[0] * 5 + [1] * 7, [3] * 1 + [4] * 6 + [9] * 5])
    packed = model(x, segments)
    for row, starts in [(0, (0, 5, 12)), (1, (0, 1, 7, 12))]:
        for a, b in itertools.pairwise(starts):
            assert_close(packed[row, a:b], model(x[row : row + 1, a:b])[0])


@every("takes_segments")
def test_no_gradient_crosses_a_document_border(options):
    model = sharp(options)
    x = torch.cat([torch.randint(0, V // 2, (2, 5)), torch.randint(V // 2, V, (2, 7))], dim=1)
    segments = torch.tensor([[0] * 5 + [1] * 7] * 2)
    model(x, segments)[:, 5:].square().sum().backward()
    gradient = model.model.embed_tokens.weight.grad
    assert not gradient[: V // 2].any() and gradient[V // 2 :].any()


@every("caches")
@torch.no_grad()
def test_cached_decoding_equals_a_full_pass(options):
    model, x = sharp(options), tokens()
    whole = model(x)
    for chunks in ([1] * LENGTH, [5, 1, 4, 2]):
        cache = KVCache()
        parts = [model(part, cache=cache) for part in x.split(chunks, dim=1)]
        assert cache.length == LENGTH
        assert_close(torch.cat(parts, dim=1), whole)


@every("caches", "takes_segments")  # padding is a document of its own
@torch.no_grad()
def test_left_padded_decoding_equals_single_rows(options):
    model, x, pads, cache = sharp(options), tokens(), (0, 3, 4), KVCache()
    segments = torch.tensor([[-1] * pad + [0] * (LENGTH - pad) for pad in pads])
    parts = [model(x[:, :7], segments[:, :7], cache)]  # the prompt, in one pass, then a token at a time
    parts += [model(x[:, t : t + 1], cache=cache) for t in range(7, LENGTH)]
    together = torch.cat(parts, dim=1)
    for row, pad in enumerate(pads):
        assert_close(together[row, pad:], model(x[row : row + 1, pad:])[0])


@every("caches", "takes_segments")
def test_shared_prefix_gives_the_gradients_of_whole_rows(options):
    """States and gradients of answers to one prompt, against each row in a pass of its own."""
    model, whole = sharp(options), tokens(2, 20)
    prompts, answers = whole[:, :8], torch.stack([whole[0, 8:12], whole[1, 8:12], whole[0, 12:16]])
    if not model.shared_prefix:
        pytest.skip("a part takes each text as a whole")
    lengths, parents, weights = torch.tensor([5, 8]), torch.tensor([0, 1, 0]), torch.randn(3, 4, 16).double()
    together = answer_states(model, prompts, lengths, parents, answers)
    alone = [
        torch.cat([prompts[p, 8 - lengths[p] :], answer])[None] for p, answer in zip(parents, answers, strict=True)
    ]
    apart = torch.cat([model.model(row)[:, -4:] for row in alone])
    assert_close(together, apart)
    learnt = [p for p in model.parameters() if p is not model.lm_head.weight]
    grads = (torch.autograd.grad((s * weights).sum(), learnt, allow_unused=True) for s in (together, apart))
    for a, b in zip(*grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert_close(a, b)


@every_combination
@torch.no_grad()
def test_rows_do_not_see_each_other(options):
    model, x, order = sharp(options), tokens(4), torch.tensor([2, 0, 3, 1])
    together = model(x)
    assert_close(model(x[order]), together[order])
    assert_close(model(x[1:2])[0], together[1])


@every_combination
@torch.no_grad()
def test_initial_loss_is_that_of_uniform_guessing(options):
    vocab, margin = 1000, {"pre": 0.05, "residual_dual": 0.2}.get(options["placement"], 0.06)  # it adds two norms' x
    for tied in (True, False):
        model = build_model(model_config(**SIZES | {"d_model": 64, "tied": tied}, **options), vocab)
        x = torch.randint(0, vocab, (16, 17))
        total, count, _ = model.loss(Example(x[:, :-1], x[:, 1:]))
        assert abs(total / count - math.log(vocab)) < margin


def one_option_each():
    """The default combination, and each option within it; without attention a token predicts from itself alone."""
    found = [o for o in COMBINATIONS if sum(o[kind] != DEFAULT[kind] for kind in DEFAULT) <= 1]
    return [o for o in found if not attentions[o["attention"]].facts["absent"]]


@pytest.mark.parametrize("options", one_option_each(), ids=lambda o: "-".join(o.values()))
def test_one_batch_can_be_memorized(options):
    model = build_model(model_config(**SIZES | {"d_model": 32}, **options), V)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    x = tokens(4, 13)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1.0, (step + 1) / 10)
        total, count, _ = model.loss(Example(x[:, :-1], x[:, 1:]))
        if total / count < 0.1:
            return
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    pytest.fail(f"the loss is {total / count:.2f} after 200 steps")


@pytest.mark.parametrize("name", positions.names())
@torch.no_grad()
def test_only_position_tables_are_limited_to_max_len(name):
    model = sharp({"position": name})
    extends = positions[name].facts["extends"]
    for cached in (False, True):
        cache = KVCache() if cached else None
        if cached:
            model(tokens(1, 10), cache=cache)
        x = tokens(1, 17 - (10 if cached else 0))
        if extends:
            assert model(x, cache=cache).isfinite().all()
        else:
            with pytest.raises(UserError, match=r"(?s)17 tokens.*model.max_len=17"):
                model(x, cache=cache)
