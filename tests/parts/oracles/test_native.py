"""Presets against transformers' own classes with the same weights: logits, loss and every gradient.

The names work in both directions; what maps the weights maps the gradients.
"""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from ablatio.config.compose import compose_run
from ablatio.interop.families import FAMILIES, family_of, incompatibilities
from ablatio.model.build import build_model
from ablatio.model.example import Example

V, LENGTH = 61, 19
TINY = ["model.d_model=32", "model.n_layers=3", "model.n_heads=4", "model.max_len=32", "model.dropout=0"]
NEOX = ["preset=gpt_neox"]
T5 = ["preset=t5", "objective.sentinels=1", "position.buckets=8", "position.max_distance=20", "model.d_head=10"]
GEMMA = [
    "norm=gemma_rmsnorm", "placement=sandwich", "activation=geglu", "activation.approximate=tanh", "attention=gqa",
    "attention.n_kv_heads=2", "attention.qk_norm=gemma_rmsnorm", "layers.attention=[{sliding*2: {window: 4}},gqa]",
    "layers.position=[{rope*2: {base: 500}},rope]", f"model.embedding_scale={32**0.5}", "model.attention_scale=0.25",
]  # fmt: skip
CASES = {
    "gemma3": ("gemma3_text", GEMMA, torch.float32),
    "gemma3-half": ("gemma3_text", [*GEMMA[:-3], "position.layout=half", *GEMMA[-2:]], torch.float32),
    "smollm3": ("smollm3", ["preset=llama", "layers.position=[rope,none,rope]", "attention=gqa"], torch.float32),
    "mistral": ("mistral", ["preset=llama", "attention=sliding", "attention.window=5"], torch.float32),
    "qwen3-windows": (
        "qwen3",
        ["preset=llama", "norm.eps=1e-6", "attention.qk_norm=rmsnorm", "layers.attention=[{sliding: {window: 5}},mha]"],
        torch.float32,
    ),
    "gpt2": ("gpt2", ["preset=gpt2"], torch.float64),
    "gpt2-wide": ("gpt2", ["preset=gpt2", "model.d_ff=40", "model.tied=false"], torch.float64),
    "llama": ("llama", ["preset=llama"], torch.float32),
    "llama-half-biased": ("llama", ["preset=llama", "position.layout=half", "model.bias=true"], torch.float32),
    "llama2": ("llama", ["preset=llama2", "model.d_head=8"], torch.float32),
    "llama-scaled": ("llama", ["preset=llama", "model.logit_scale=0.5", "model.attention_scale=0.3"], torch.float32),
    "bloom": ("bloom", ["preset=bloom"], torch.float32),
    "opt": ("opt", ["preset=opt"], torch.float64),
    "opt-without-biases": ("opt", ["preset=opt", "model.bias=false", "activation=gelu"], torch.float64),
    "neox": ("gpt_neox", NEOX, torch.float32),
    "neox-interleaved": ("gpt_neox", [*NEOX, "position.layout=interleaved", "position.fraction=0.5"], torch.float32),
    "neox-sequential": ("gpt_neox", [*NEOX, "block=sequential"], torch.float32),
    "t5-1.0": ("t5", T5, torch.float64),
    "t5-1.1": (
        "t5",
        [*T5, "activation=geglu", "activation.approximate=tanh", "model.tied=false", "model.logit_scale=1"],
        torch.float64,
    ),
    "ul2": ("t5", ["preset=ul2", "objective=span_corruption", *T5[1:]], torch.float64),
    "t5-deeper-encoder": ("t5", [*T5, "activation=swiglu", "model.encoder_layers=2", "init=gpt2"], torch.float64),
}


def ours_and_family(name, overrides, dtype):
    config = compose_run([*TINY, *overrides]).config
    vocab = V - 1 if name == "t5" else V  # one sentinel
    model, family = build_model(config, vocab).to(dtype), family_of(config, vocab)
    assert family is not None and family.model_type == name, incompatibilities(config, vocab)
    for n, p in model.named_parameters():
        torch.nn.init.normal_(p, mean=float("norm" in n and n.endswith("weight")), std=0.2)
    return model, family


def theirs_with(model, family, dtype):
    """Their class from the config.json that we would write, with our weights in it."""
    settings = family.config_json()
    auto = AutoModelForSeq2SeqLM if settings.get("is_encoder_decoder") else AutoModelForCausalLM
    kernel = "eager" if family.model_type == "bloom" else "sdpa"  # eager softmax is float32 whatever comes in
    theirs = auto.from_config(AutoConfig.for_model(**settings), attn_implementation=kernel).to(dtype)
    if not family.dims.tied:  # transformers 5 ties T5's head on making, and unties it on loading
        theirs.get_output_embeddings().weight = torch.nn.Parameter(theirs.get_output_embeddings().weight.clone())
    missing, unexpected = theirs.load_state_dict(named(family, model.state_dict()), strict=False)
    tied = {"lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    assert not unexpected and set(missing) <= tied, (missing, unexpected)
    return theirs.eval()


def named(family, tensors):
    """Their names in memory; in files GPT-NeoX's head has another one, which transformers renames on loading."""
    return {n.replace("embed_out.", "lm_head."): t for n, t in family.to_native(tensors).items()}


@pytest.mark.oracle("architecture=causal", "transformers GPT-2, LLaMA, BLOOM, OPT and GPT-NeoX")
@pytest.mark.oracle("architecture=encoder_decoder", "transformers T5ForConditionalGeneration")
@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_gradients_are_those_of_transformers(case):
    name, overrides, dtype = CASES[case]
    model, family = ours_and_family(name, overrides, dtype)
    theirs = theirs_with(model, family, dtype)
    source, tokens = torch.randint(0, V, (3, 11)), torch.randint(0, V, (3, LENGTH))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    # Their rotary tables and T5's norm compute in float32 whatever comes in.
    tolerance = 1e-10 if dtype == torch.float64 and name != "t5" else 2e-5
    if name == "t5":
        logits = theirs(input_ids=source, decoder_input_ids=inputs).logits
        total, count, _ = model.loss(Example(inputs, targets, source=source))
        ours = model.logits(model.hidden(Example(inputs, targets, source=source)))
    else:
        logits = theirs(tokens).logits[:, :-1]
        total, count, _ = model.loss(Example(inputs, targets))
        ours = model(inputs)
    torch.testing.assert_close(ours, logits, rtol=tolerance, atol=tolerance)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close((total / count).to(loss), loss, rtol=tolerance, atol=tolerance)
    if any(factor != 1.0 for factor in family._factors()):
        return  # a factor that moves into a weight divides its gradient
    (total / count).backward()
    loss.backward()
    gradients = named(family, {n: p.grad for n, p in model.named_parameters()})
    expected = {n: p.grad for n, p in theirs.named_parameters()}
    assert expected.keys() == gradients.keys()
    for n, gradient in expected.items():
        torch.testing.assert_close(
            gradients[n], gradient, rtol=tolerance, atol=tolerance, msg=lambda m, n=n: f"{n}: {m}"
        )


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_where_it_was(case):
    name, overrides, _ = CASES[case]
    model, family = ours_and_family(name, overrides, torch.float64)
    state = model.state_dict()
    back = family.from_native(family.to_native(state))
    assert back.keys() == state.keys()
    for n, tensor in state.items():
        torch.testing.assert_close(back[n], tensor, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "overrides",
    [
        ["placement=post"], ["norm=layernorm"], ["position=alibi"], ["mlp=dense", "activation=gelu"],
        ["model.embedding_norm=true"], ["model.embedding_scale=2"], ["block=parallel"], ["norm.affine=false"],
        ["architecture=prefix", "objective=prefix_lm"], ["preset=gpt2", "activation=swiglu"],
        ["preset=bloom", "model.embedding_norm=false"], ["preset=bloom", "model.d_ff=32"],
        ["preset=gpt2", "attention=mqa"], ["preset=gpt2", "model.d_head=10"], ["preset=gpt2", "norm.bias=false"],
    ],
)  # fmt: skip
def test_what_transformers_does_not_have_fits_nowhere(overrides):
    config = compose_run([*TINY, *overrides]).config
    assert family_of(config, V) is None
    assert all(incompatibilities(config, V).values()) and len(incompatibilities(config, V)) == len(FAMILIES)


@pytest.mark.parametrize(("objective", "names"), [("multi_token", ".further."), ("token_order", "further_heads.")])
def test_what_only_training_uses_is_not_exported(objective, names):
    """Siblings of the last layer and further heads: what transformers loads is the model that decodes."""
    config = compose_run([*TINY, "preset=llama", f"objective={objective}"]).config
    model, family = build_model(config, V), family_of(config, V)
    named_, plain = family.to_native(model.state_dict()), family_of(compose_run([*TINY, "preset=llama"]).config, V)
    kept = {n: t for n, t in model.state_dict().items() if names not in n}
    assert named_.keys() == plain.to_native(kept).keys() and len(kept) < len(model.state_dict())
    assert all(torch.equal(plain.from_native(named_)[n], t) for n, t in kept.items())


@pytest.mark.parametrize("name, preset", [("llama", "llama"), ("t5", "ul2")])
def test_a_swiglu_with_another_beta_is_refused(name, preset):
    """transformers' silu has no beta: exported with it, the model would compute something else."""
    for beta, refused in ((1, False), (2, True)):
        given = [*TINY, f"preset={preset}", "activation=swiglu", f"activation.beta={beta}"]
        given += ["objective=span_corruption", *T5[1:]] if name == "t5" else []
        reasons = incompatibilities(compose_run(given).config, V)[name]
        assert any("activation.beta" in reason for reason in reasons) == refused, reasons
