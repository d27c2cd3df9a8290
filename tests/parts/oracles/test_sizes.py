"""Parameters of presets at their true sizes against transformers' own classes on the meta device; and what they weigh.

The oracle counts the parameters of the class that transformers builds from the published config.
"""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BloomConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    SwitchTransformersConfig,
    T5Config,
)

from ablatio.config.compose import compose_run
from ablatio.config.presets import presets
from ablatio.model.build import build_model
from ablatio.model.cost.memory import decoding_cache, memory_of
from ablatio.model.cost.parameters import measure
from ablatio.model.on_meta import on_meta
from ablatio.model.parameter_roles import groups_by_role
from ablatio.registry.registry import REGISTRIES
from ablatio.testing import tiny_models
from ablatio.training.run_spec import vocabulary_of


def gpt2(width, layers, heads):
    return GPT2Config(n_embd=width, n_layer=layers, n_head=heads)


def llama(width, layers, heads, d_ff, **more):
    return LlamaConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=d_ff, **more
    )


def bloom(width, layers, heads):
    return BloomConfig(hidden_size=width, n_layer=layers, n_head=heads)


def opt(width, layers, heads):
    return OPTConfig(
        hidden_size=width, word_embed_proj_dim=width, num_hidden_layers=layers, num_attention_heads=heads,
        ffn_dim=4 * width,
    )  # fmt: skip


def t5(width, layers, heads, d_ff, **more):
    return T5Config(d_model=width, num_layers=layers, num_heads=heads, d_ff=d_ff, **more)


def switch(width, layers, heads, d_ff, experts):
    sparse = {"num_sparse_encoder_layers": layers // 2, "num_sparse_decoder_layers": layers // 2}
    return SwitchTransformersConfig(
        d_model=width, num_layers=layers, num_heads=heads, d_ff=d_ff, num_experts=experts, **sparse
    )


PUBLISHED = {
    ("gpt2", "124m"): (gpt2(768, 12, 12), 124_439_808),
    ("gpt2", "1.5b"): (gpt2(1600, 48, 25), 1_557_611_200),
    ("bloom", "560m"): (bloom(1024, 24, 16), 559_214_592),
    ("bloom", "176b"): (bloom(14336, 70, 112), 176_247_271_424),
    ("llama", "7b"): (llama(4096, 32, 32, 11008), 6_738_415_616),
    ("llama", "65b"): (llama(8192, 80, 64, 22016), 65_285_660_672),
    ("llama2", "70b"): (llama(8192, 80, 64, 28672, num_key_value_heads=8), 68_976_648_192),
}
PUBLISHED |= {
    ("opt", "125m"): (opt(768, 12, 12), 125_239_296),
    ("opt", "175b"): (opt(12288, 96, 96), None),
    ("gpt_neox", "20b"): (GPTNeoXConfig(), 20_554_567_680),
    ("switch", "7b"): (switch(768, 12, 12, 3072, 128), None),
    ("t5", "60m"): (t5(512, 6, 8, 2048), 60_506_624),
    ("t5", "220m"): (t5(768, 12, 12, 3072), 222_903_552),
    ("t5", "11b"): (t5(1024, 24, 128, 65536, d_kv=128), 11_307_321_344),
    ("ul2", "20b"): (t5(4096, 32, 16, 16384, d_kv=256, feed_forward_proj="gated-silu"), None),
}
# What transformers' class holds beside the model: OPT's table of positions begins with two rows that nothing reads, and
# T5's head is the embedding until weights are loaded that say otherwise.
BESIDE = {"opt": lambda config: 2 * config.hidden_size, "ul2": lambda config: -config.vocab_size * config.d_model}


def config_of(preset, size, *more):
    return compose_run([f"preset={preset}", f"size={size}", *more]).config


def counted(preset, size):
    config = config_of(preset, size)
    return measure(config, vocabulary_of(config))


@pytest.mark.matrix
@pytest.mark.parametrize(("name", "size"), PUBLISHED, ids=["-".join(key) for key in PUBLISHED])
def test_a_true_size_has_the_parameters_of_the_published_model(name, size):
    config, published = PUBLISHED[name, size]
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with on_meta():
        theirs = auto.from_config(config).num_parameters()
    assert published in (None, theirs)
    assert counted(name, size).parameters == theirs - BESIDE.get(name, lambda config: 0)(config)


@pytest.mark.parametrize("optimizer", sorted(REGISTRIES["optimizer"].names()))
def test_the_state_of_an_optimizer_weighs_what_it_weighs_after_a_step(optimizer):
    config = config_of("gpt2", "tiny", f"optimizer={optimizer}", "schedule=constant", "tokenizer=bytes")
    model = build_model(config, 257)
    knobs = {k: v for k, v in config["optimizer"].items() if k != "name"}
    made = REGISTRIES["optimizer"].build(optimizer, knobs, groups=groups_by_role(model))
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    made.step()
    held = [t for state in made.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    assert memory_of(config, 257).optimizer == sum(t.numel() * t.element_size() for t in held)


@pytest.mark.parametrize("kind", ["placement", "mlp", "position", "attention", "block", "architecture", "objective"])
def test_memory_is_known_of_every_option(kind):
    """At a length at which attention goes block by block, and in mixtures whose loads nobody knows yet."""
    for entry in REGISTRIES[kind]:
        found = memory_of(tiny_models.config(entry, max_len=520, n_layers=1), tiny_models.VOCAB)
        assert found.activations and found.optimizer, f"{kind}={entry.name}"


MIXTURE = ("mlp=moe", "mlp.top_k=2", "mlp.jitter=0")  # the loads of a real pass are filled up to blocks


@pytest.mark.parametrize("preset, more", [("gpt2", ()), ("llama", ()), ("bloom", ()), ("gpt2", MIXTURE)])
@pytest.mark.parametrize("layers", [3, 12])
def test_activations_are_those_that_autograd_keeps(preset, more, layers):
    """Against torch's hooks on a real pass; beyond eight layers they are extended from fewer."""
    length = 512 if more else 64
    config = config_of(preset, "tiny", f"model.n_layers={layers}", "tokenizer=bytes", f"model.max_len={length}", *more)
    model = build_model(config, 257).train()
    weights = {p.data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model.model(torch.randint(0, 257, (1, length)))
    real = sum(storage.nbytes() for storage in kept.values())
    assert memory_of(config, 257).activations == pytest.approx(real, rel=0.03 if more else 0.01)


def test_the_cache_of_one_token_is_its_keys_and_values():
    config = config_of("llama2", "70b", "model.n_layers=3")
    assert decoding_cache(config, 2048) == 3 * 2 * 8 * 128 * 4  # layers, k and v, heads of them, d_head, bytes


@pytest.mark.matrix
@pytest.mark.parametrize("name", sorted(presets()))
def test_each_size_is_called_after_its_parameters(name):
    for size in presets()[name].sizes:
        config = config_of(name, size)
        with on_meta():
            parameters = sum(p.numel() for p in build_model(config, vocabulary_of(config)).parameters())
        called = float(size[:-1]) * {"m": 1e6, "b": 1e9, "t": 1e12}[size[-1]]
        assert parameters == pytest.approx(called, rel=0.17), size  # as rounded by those who published it
