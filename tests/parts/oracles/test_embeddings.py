"""Embeddings against loops over tokens in plain Python, and the narrow table against transformers' OPT."""

import math

import pytest
import torch
from helpers.support import model_config
from transformers import OPTConfig, OPTForCausalLM

from ablatio.config.compose import compose_run
from ablatio.interop.families import family_of
from ablatio.model.build import build_model
from ablatio.model.context import make_context
from ablatio.model.cost.flops import cost_of
from ablatio.model.cost.parameters import measure
from ablatio.model.example import Example
from ablatio.model.parameter_roles import describe
from ablatio.registry.registry import REGISTRIES
from ablatio.testing import compatibility_table

V, D, T = 23, 12, 9


def entered(name, knobs, x, tokens, segments=None):
    part = REGISTRIES["embedding"].build(name, knobs, d_model=D, vocab_size=V, n_layers=2, max_len=32, side="decoder")
    for p in part.double().parameters():
        torch.nn.init.normal_(p)
    return part, part(x, tokens, make_context(tokens, None, "causal", segments, None, torch.float64))


def inputs():
    return torch.randn(2, T, D, dtype=torch.float64), torch.randint(0, V, (2, T))


def before(tokens, segments, row, t, count):
    """Ids of the `count` tokens before t in its document, the nearest first; None where there is none."""
    places = [s for s in range(t) if segments[row, s] == segments[row, t]]
    found = [int(tokens[row, s]) for s in reversed(places)][:count]
    return found + [None] * (count - len(found))


SEGMENTS = torch.tensor([[0] * 4 + [1] * 5, [0, 0, 1, 1, 0, 1, 2, 2, 2]])


@pytest.mark.oracle("embedding=plain", "the rows of the table")
def test_plain_is_the_table():
    x, tokens = inputs()
    assert torch.equal(entered("plain", {}, x, tokens)[1], x)
    model = build_model(model_config(embedding="plain"), V)
    assert model.model.embedding is None and model.project_out is None


@pytest.mark.oracle("embedding=smear", "a loop over tokens in float64")
@pytest.mark.parametrize("channels", [5, 12, 40])
def test_smear_adds_the_token_before(channels):
    x, tokens = inputs()
    part, found = entered("smear", {"channels": channels}, x, tokens, SEGMENTS)
    for row in range(2):
        for t in range(T):
            places = [s for s in range(t) if SEGMENTS[row, s] == SEGMENTS[row, t]]
            expected = x[row, t]
            if places:
                gate = 1 / (1 + math.exp(-(x[row, t, :channels] @ part.gate).item()))
                expected = expected + part.strength * gate * x[row, places[-1]]
            torch.testing.assert_close(found[row, t], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.oracle("embedding=second", "two lookups")
def test_second_adds_a_row_of_another_table():
    x, tokens = inputs()
    part, found = entered("second", {}, x, tokens)
    rows = torch.stack([part.embed_tokens.weight[int(i)] for i in tokens.flatten()]).view_as(x)
    torch.testing.assert_close(found, x + part.weight.item() * rows)


@pytest.mark.oracle("embedding=bigram_hash", "the hashes in Python's integers, a token at a time")
@pytest.mark.parametrize("signs", [0, 16])
def test_bigram_hash_looks_up_pairs(signs):
    x, tokens = inputs()
    part, found = entered("bigram_hash", {"ratio": 2.0, "signs": signs}, x, tokens, SEGMENTS)
    assert part.table.num_embeddings == 2 * V
    for row in range(2):
        for t in range(T):
            (last,), now = before(tokens, SEGMENTS, row, t, 1), int(tokens[row, t])
            number = 2 * V - 1 if last is None else (36313 * now ^ 27191 * last) % (2 * V - 1)
            e = part.table.weight[number]
            if signs:
                e = e * part.signs[0 if last is None else (now ^ last) % signs]
            torch.testing.assert_close(found[row, t], x[row, t] + part.weight.item() * e)


def test_signs_are_fixed_and_balanced():
    part = REGISTRIES["embedding"].build("bigram_hash", d_model=64, vocab_size=V)
    assert set(part.signs.unique().tolist()) == {-1, 1} and abs(part.signs.float().mean()) < 0.01
    assert "signs" in part.state_dict() and not any(name == "signs" for name, _ in part.named_parameters())


@pytest.mark.oracle("embedding=ngram_hash", "the n-grams as numbers in base V, a token at a time")
@pytest.mark.parametrize("n, k", [(2, 1), (3, 2), (4, 1)])
def test_ngram_hash_averages_projected_rows(n, k):
    x, tokens = inputs()
    part, found = entered("ngram_hash", {"n": n, "k": k, "ratio": 1.5}, x, tokens, SEGMENTS)
    sizes = [round(1.5 * V) + 2 * i + 1 for i in range(k * (n - 1))]
    assert [table.num_embeddings for table in part.tables] == sizes
    for row in range(2):
        for t in range(T):
            ids = [int(tokens[row, t]), *(i or 0 for i in before(tokens, SEGMENTS, row, t, n - 1))]
            total = x[row, t]
            for number, rows in enumerate(sizes):
                length = 2 + number // k
                gram = sum(i * V**place for place, i in enumerate(ids[:length]))
                total = total + part.projections[number].weight @ part.tables[number].weight[gram % rows]
            torch.testing.assert_close(found[row, t], total / (1 + len(sizes)))


@pytest.mark.oracle("embedding=factorized", "transformers OPTForCausalLM with word_embed_proj_dim")
def test_factorized_is_opt_with_a_narrow_table():
    overrides = ["preset=opt", "model.d_model=24", "model.n_layers=2", "model.n_heads=4"]
    config = compose_run([*overrides, "model.max_len=32", "embedding=factorized", "embedding.width=7"]).config
    config["model"]["vocab_size"] = None
    model = build_model(config, V).double()
    for name, p in model.named_parameters():
        torch.nn.init.normal_(p, mean=float("norm" in name and name.endswith("weight")), std=0.2)
    family = family_of({k: v for k, v in config.items() if k != "embedding"}, V)
    settings = OPTConfig(**family.settings() | {"vocab_size": V, "word_embed_proj_dim": 7, "pad_token_id": None})
    theirs = OPTForCausalLM._from_config(settings, attn_implementation="sdpa").double().eval()
    theirs.load_state_dict(renamed(family, model.state_dict()), strict=False)
    tokens = torch.randint(0, V, (3, T))
    logits = theirs(tokens).logits
    torch.testing.assert_close(model.eval()(tokens), logits, rtol=1e-10, atol=1e-10)
    total, count, _ = model.loss(Example(tokens[:, :-1], tokens[:, 1:]))
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(total / count, loss, rtol=1e-10, atol=1e-10)
    (total / count).backward()
    loss.backward()
    gradients = renamed(family, {n: p.grad for n, p in model.named_parameters()})
    for name, p in theirs.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, rtol=1e-9, atol=1e-10)


def renamed(family, tensors):
    """Their names of our tensors; the two projections stand beside their decoder's layers."""
    own = {"model.embedding.project_in.weight": "project_in", "project_out.weight": "project_out"}
    others = {f"model.decoder.{own[n]}.weight": t for n, t in tensors.items() if n in own}
    return family.to_native({n: t for n, t in tensors.items() if n not in own}) | others


@pytest.mark.parametrize("tied", [True, False])
def test_a_narrow_table_is_counted(tied):
    config = model_config(embedding={"name": "factorized", "width": 6}, tied=tied)
    size, plain = measure(config, V), measure(model_config(tied=tied), V)
    saved = V * 32 - (V * 6 + 6 * 32 + (6 * 32 if tied else 0))
    assert plain.parameters - size.parameters == saved
    head = 2 * (V * 6 + 6 * 32) if tied else 2 * V * 32
    assert cost_of(config, V).head == head
    assert size.flops_per_token - plain.flops_per_token == 2 * 6 * 32 + head - 2 * V * 32
    roles = {info.name: info.role for _, info in describe(build_model(config, V))}
    assert roles["model.embed_tokens.weight"] == "embedding"
    assert roles["model.embedding.project_in.weight"] == "matrix"


@pytest.mark.parametrize("optimizer", ["soap", "shampoo"])
def test_a_table_with_unused_rows_has_eigenbases(optimizer):
    """The moments of most rows are 0, and float32's eigh may not converge on such a matrix."""
    parts = REGISTRIES["embedding"]["bigram_hash"], REGISTRIES["optimizer"][optimizer]
    assert math.isfinite(compatibility_table.one_step(compatibility_table.config_of(*parts)))


def test_every_embedding_has_an_oracle():
    known = {"plain", "factorized", "second", "smear", "bigram_hash", "ngram_hash"}
    assert known == {e.name for e in REGISTRIES["embedding"] if e.distribution.name == "ablatio"}
