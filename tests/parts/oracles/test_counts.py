"""Parameters and FLOPs against numel, closed formulas, torch's counter on a real pass, and published totals."""

import resource

import pytest
import torch
from helpers.support import model_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ablatio.model.build import build_model
from ablatio.model.cost.parameters import measure

GPT2 = {"norm": "layernorm", "activation": "gelu", "position": "learned", "bias": True}
LLAMA = {"norm": "rmsnorm", "activation": "swiglu", "position": "rope", "bias": False, "tied": False}
CONFIGS = [
    GPT2, LLAMA, LLAMA | {"attention": "gqa"}, LLAMA | {"attention": "mqa", "block": "parallel"},
    GPT2 | {"position": "t5", "tied": False}, LLAMA | {"position": "alibi", "placement": "post"},
    LLAMA | {"position": "sinusoidal", "activation": "geglu", "placement": "deepnorm", "tied": True},
]  # fmt: skip


@pytest.mark.parametrize("options", CONFIGS, ids=lambda o: "-".join(map(str, o.values())))
def test_counts_are_those_of_the_real_model(options):
    config = model_config(**options, d_model=48, n_layers=3, max_len=40)
    size, model = measure(config, 97), build_model(config, 97).eval()
    assert size.parameters == sum(p.numel() for p in model.parameters())
    tables = {m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    assert size.embedding == sum(t.numel() for t in tables)
    # The fused kernel's products are opaque to the counter on the CPU; the plain one shows them.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(torch.zeros(1, 40, dtype=torch.long))
    assert size.flops_per_token == counter.get_total_flops() / 40
    assert size.train_flops_per_token == 3 * size.flops_per_token


@pytest.mark.parametrize("d, layers, length, vocab", [(32, 1, 16, 50), (64, 4, 128, 1000)])
def test_gpt2_in_closed_form(d, layers, length, vocab):
    size = measure(model_config(**GPT2, d_model=d, n_layers=layers, max_len=length), vocab)
    assert size.parameters == vocab * d + length * d + layers * (12 * d * d + 13 * d) + 2 * d
    assert size.embedding == (vocab + length) * d
    assert size.flops_per_token == layers * (24 * d * d + 4 * length * d) + 2 * d * vocab


@pytest.mark.parametrize(
    "d, ff, layers, heads, kv, length, vocab", [(32, 88, 2, 4, 2, 16, 50), (64, 100, 4, 8, 1, 64, 300)]
)
def test_llama_in_closed_form(d, ff, layers, heads, kv, length, vocab):
    options = LLAMA | {"d_ff": ff, "match": "none", "n_heads": heads, "attention": {"name": "gqa", "n_kv_heads": kv}}
    size = measure(model_config(**options, d_model=d, n_layers=layers, max_len=length), vocab)
    layer = 2 * d * d + 2 * d * d * kv // heads + 3 * d * ff
    assert size.parameters == 2 * vocab * d + layers * (layer + 2 * d) + d
    assert size.non_embedding == size.parameters - vocab * d
    assert size.flops_per_token == layers * (2 * layer + 4 * length * d) + 2 * d * vocab


def published(name):
    if name == "gpt2":
        return measure(model_config(**GPT2, d_model=768, n_layers=12, n_heads=12, max_len=1024), 50257)
    if name == "llama-7b":
        sizes = {"d_model": 4096, "n_layers": 32, "n_heads": 32, "max_len": 2048, "d_ff": 11008, "match": "none"}
        return measure(model_config(**LLAMA, **sizes), 32000)
    if name == "gpt2-xl":
        return measure(model_config(**GPT2, d_model=1600, n_layers=48, n_heads=25, max_len=1024), 50257)
    sizes = {"d_model": 14336, "n_layers": 70, "n_heads": 112, "max_len": 64, "bias": True, "position": "alibi"}
    return measure(model_config(**GPT2 | sizes), 250880)


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("gpt2", 124_439_808),
        ("gpt2-xl", 1_557_611_200),
        ("llama-7b", 6_738_415_616),
        ("bloom-176b", 176_247_271_424 - 2 * 14336),  # less the norm of its embeddings
    ],
)
def test_published_totals_without_memory(name, parameters):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert published(name).parameters == parameters
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


PATTERNS = [
    ({"name": "sliding", "window": 7}, lambda t, s: abs(t - s) < 7),
    ({"name": "lambda_window", "window": 5, "first": 3}, lambda t, s: abs(t - s) < 5 or s < 3),
    ({"name": "sparse", "stride": 6}, lambda t, s: abs(t - s) <= 6 or (t - s) % 6 == 0),
    ({"name": "sparse", "kind": "fixed", "stride": 6, "summary": 2}, lambda t, s: t // 6 == s // 6 or s % 6 >= 4),
]


@pytest.mark.parametrize("attention, shows", PATTERNS, ids=lambda o: o["name"] if isinstance(o, dict) else "")
def test_a_pattern_is_counted_with_the_pairs_that_it_shows(attention, shows):
    """Pair by pair in a loop; later tokens are pairs here too, as they are for full attention."""
    sizes = {"d_model": 48, "n_layers": 3, "max_len": 40, "n_heads": 4}
    full = measure(model_config(attention="mha", **sizes), 97)
    found = measure(model_config(attention=attention, **sizes), 97)
    pairs = sum(shows(t, s) for t in range(40) for s in range(40))
    assert found.parameters == full.parameters
    hidden = (full.flops_per_token - found.flops_per_token) * 40
    assert hidden == pytest.approx(3 * 4 * 48 * (40 * 40 - pairs), rel=1e-9)


def test_layers_that_see_all_and_windows_as_wide_as_the_text_are_counted_as_full():
    sizes = {"d_model": 48, "n_layers": 4, "max_len": 40, "n_heads": 4}
    full, none, some = (
        measure(model_config(attention=a, **sizes), 97).flops_per_token
        for a in ("mha", {"name": "sliding", "window": 40}, {"name": "sliding", "window": 4, "full_every": 2})
    )
    every = measure(model_config(attention={"name": "sliding", "window": 4}, **sizes), 97).flops_per_token
    assert full == none and full - some == pytest.approx((full - every) / 2, rel=1e-9)


def test_a_window_in_encoder_and_decoder_leaves_cross_attention_whole():
    sizes = {"d_model": 48, "n_layers": 2, "max_len": 40, "n_heads": 4, "architecture": "encoder_decoder"}
    sizes |= {"objective": "prefix_lm"}
    full = measure(model_config(attention="mha", **sizes), 97).flops_per_token
    window = measure(model_config(attention={"name": "sliding", "window": 1}, **sizes), 97).flops_per_token
    from ablatio.model.cost.parameters import example_of

    example, length = example_of(model_config(**sizes), 97)
    lengths = example.source.shape[1], example.inputs.shape[1]
    assert (full - window) * length == pytest.approx(2 * 4 * 48 * sum(n * n - n for n in lengths))
