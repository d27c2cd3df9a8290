"""Whole models with copied weights against transformers': logits, loss and every gradient.

A function renames our weights into theirs; the same function renames our gradients.
"""

import pytest
import torch
import torch.nn.functional as F
from helpers.support import model_config
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from ablatio.config.compose import compose_run
from ablatio.model.build import build_model
from ablatio.model.example import Example

V, D, LAYERS, H, LENGTH = 61, 24, 3, 4, 19
SIZES = {"d_model": D, "n_layers": LAYERS, "n_heads": H, "max_len": 32}


def ours(dtype, **options):
    model = build_model(model_config(**SIZES | options), V).to(dtype)
    for name, p in model.named_parameters():
        torch.nn.init.normal_(p, mean=float("norm" in name and name.endswith("weight")), std=0.2)
    return model


def assert_same_model(model, theirs, renamed, tolerance):
    """`renamed` maps the named tensors of our model to a state dict of theirs."""
    missing, unexpected = theirs.load_state_dict(renamed(dict(model.named_parameters())), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}  # tied
    theirs.train(False)
    tokens = torch.randint(0, V, (3, LENGTH))
    output = theirs(tokens, labels=tokens)
    total, count, _ = model.loss(Example(tokens[:, :-1], tokens[:, 1:]))
    torch.testing.assert_close(model(tokens), output.logits, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close((total / count).float(), output.loss, rtol=1e-6, atol=1e-6)  # theirs is float32
    loss = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(total / count, loss, rtol=tolerance, atol=tolerance)
    (total / count).backward()
    loss.backward()
    gradients = renamed({n: p.grad for n, p in model.named_parameters()})
    expected = {n: p.grad for n, p in theirs.named_parameters()}
    assert expected.keys() == gradients.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            gradients[name], gradient, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def renamed(tensors, table):
    """Replace the parts of names by `table`, longest first."""
    result = {}
    for name, tensor in tensors.items():
        for old in sorted(table, key=len, reverse=True):
            name = name.replace(old, table[old])
        result[name] = tensor
    return result


def as_gpt2(tensors):
    tensors = dict(tensors)
    for i in range(LAYERS):
        attention = f"model.layers.{i}.self_attn."
        for kind in ("weight", "bias"):
            parts = [tensors.pop(f"{attention}{p}_proj.{kind}") for p in "qkv"]
            tensors[f"{attention}c_attn.{kind}"] = torch.cat(parts)
    table = {
        "model.embed_tokens": "transformer.wte",
        "model.position.table": "transformer.wpe",
        "model.layers": "transformer.h",
        "model.norm": "transformer.ln_f",
        "self_attn.o_proj": "attn.c_proj",
        "self_attn": "attn",
        "up_proj": "c_fc",
        "down_proj": "c_proj",
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
    }
    result = renamed(tensors, table)
    turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # their Conv1D stores the transpose
    return {n: t.T if n.endswith(turned) else t for n, t in result.items()}


@pytest.mark.parametrize("approximate, theirs", [("tanh", "gelu_new"), ("none", "gelu")])
def test_gpt2(approximate, theirs):
    activation = {"name": "gelu", "approximate": approximate}
    model = ours(torch.float64, norm="layernorm", activation=activation, position="learned", bias=True)
    config = GPT2Config(
        vocab_size=V,
        n_positions=32,
        n_embd=D,
        n_layer=LAYERS,
        n_head=H,
        activation_function=theirs,
        attn_implementation="sdpa",
        bos_token_id=0,
        eos_token_id=0,
    )
    assert_same_model(model, GPT2LMHeadModel(config).double(), as_gpt2, 1e-10)


QKV_BIASES = ("q_proj.bias", "k_proj.bias", "v_proj.bias")


def as_gpt_neo(tensors):
    """Its queries, keys and values have no biases: ours are zero."""
    table = {
        "model.embed_tokens": "transformer.wte", "model.position.table": "transformer.wpe",
        "model.layers": "transformer.h", "model.norm": "transformer.ln_f", "self_attn": "attn.attention",
        "self_attn.o_proj": "attn.attention.out_proj", "up_proj": "c_fc", "down_proj": "c_proj",
        "input_layernorm": "ln_1", "post_attention_layernorm": "ln_2",
    }  # fmt: skip
    return renamed({n: t for n, t in tensors.items() if not n.endswith(QKV_BIASES)}, table)


@pytest.mark.oracle("attention=sliding", "transformers GPTNeoForCausalLM")
def test_gpt3_is_gpt_neo_with_a_factor_on_its_scores():
    """GPT-Neo was made after GPT-3: every second layer sees a window of the last tokens, the others all."""
    settings = [f"model.{key}={value}" for key, value in SIZES.items()]
    config = compose_run(["preset=gpt3", *settings, "attention.window=5", "model.attention_scale=1"]).config
    model = build_model(config, V).double().eval()
    for name, p in model.named_parameters():
        torch.nn.init.normal_(p, mean=float("norm" in name and name.endswith("weight")), std=0.2)
        if name.endswith(QKV_BIASES):
            torch.nn.init.zeros_(p)
    neo = GPTNeoConfig(
        vocab_size=V, max_position_embeddings=32, hidden_size=D, num_layers=LAYERS, num_heads=H, window_size=5,
        attention_types=[[["local", "global"], 1], [["local"], 1]], bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    assert_same_model(model, GPTNeoForCausalLM(neo).double(), as_gpt_neo, 2e-5)  # their scores are float32


def llama(n_kv, d_ff, tied, eps=1e-6):
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=d_ff,
        num_hidden_layers=LAYERS,
        num_attention_heads=H,
        num_key_value_heads=n_kv,
        tie_word_embeddings=tied,
        rms_norm_eps=eps,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("attention, n_kv", [("mha", H), ("gqa", 2), ("mqa", 1)])
@pytest.mark.parametrize("tied", [False, True])
def test_llama(attention, n_kv, tied):
    position = {"name": "rope", "layout": "half"}
    model = ours(torch.float32, attention=attention, position=position, tied=tied, d_ff=40, match="none")
    assert_same_model(model, llama(n_kv, 40, tied), dict, 1e-5)


def test_llama_with_interleaved_pairs():
    """Rows (i, i + d/2) of each head's q_proj and k_proj stand side by side in ours."""
    width = D // H

    def halves(tensors):
        back = {}
        for name, tensor in tensors.items():
            if "q_proj" in name or "k_proj" in name:
                tensor = tensor.unflatten(0, (-1, width // 2, 2)).transpose(1, 2).flatten(0, 2)
            back[name] = tensor
        return back

    model = ours(torch.float32, attention="gqa", tied=False, norm={"name": "rmsnorm", "eps": 1e-5})
    d_ff = model.model.layers[0].mlp.gate_proj.out_features
    assert_same_model(model, llama(2, d_ff, False, eps=1e-5), halves, 1e-5)


def as_mpt(tensors):
    tensors = dict(tensors)
    for i in range(LAYERS):
        attention = f"model.layers.{i}.self_attn."
        tensors[f"{attention}Wqkv.weight"] = torch.cat([tensors.pop(f"{attention}{p}_proj.weight") for p in "qkv"])
    table = {
        "model.embed_tokens": "transformer.wte",
        "model.layers": "transformer.blocks",
        "model.norm": "transformer.norm_f",
        "self_attn.o_proj": "attn.out_proj",
        "self_attn": "attn",
        "mlp": "ffn",
        "input_layernorm": "norm_1",
        "post_attention_layernorm": "norm_2",
    }
    return renamed(tensors, table)


@pytest.mark.oracle("architecture=causal", "transformers MPT")
@pytest.mark.parametrize("heads", [4, 6])
def test_mpt_with_alibi(heads):
    norm = {"name": "layernorm", "bias": False}
    model = ours(torch.float32, norm=norm, activation="gelu", position="alibi", n_heads=heads)
    config = MptConfig(d_model=D, n_heads=heads, n_layers=LAYERS, max_seq_len=32, vocab_size=V, use_cache=False)
    assert_same_model(model, MptForCausalLM(config), as_mpt, 1e-5)
