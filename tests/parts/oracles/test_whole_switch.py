"""preset=switch against transformers' SwitchTransformersForConditionalGeneration with the same weights."""

import re

import pytest
import torch
import torch.nn.functional as F
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersTop1Router

from ablatio.config.compose import compose_run
from ablatio.model.build import build_model
from ablatio.model.example import Example

V, EXPERTS, LAYERS = 61, 4, 4
SETTINGS = [
    "preset=switch", "model.d_model=32", f"model.n_layers={LAYERS}", "model.n_heads=4", "model.max_len=32",
    "model.dropout=0", "objective.sentinels=1", "position.buckets=8", "position.max_distance=20", "model.d_head=10",
    "model.d_ff=48", f"mlp.experts={EXPERTS}", "mlp.balance=0", "mlp.z_loss=0",
]  # fmt: skip
NAMES = (
    (r"^(model|encoder)\.embed_tokens", "shared"),
    (r"^encoder\.layers", "encoder.block"),
    (r"^model\.layers", "decoder.block"),
    (r"^model\.(norm|position)", r"decoder.\1"),
    (r"\.position\.", ".block.0.layer.0.SelfAttention."),
    (r"coder\.norm\.", "coder.final_layer_norm."),
    (r"\.self_attn\.(\w)_proj", r".layer.0.SelfAttention.\1"),
    (r"\.input_layernorm", ".layer.0.layer_norm"),
    (r"\.cross_attn\.(\w)_proj", r".layer.1.EncDecAttention.\1"),
    (r"\.cross_layernorm", ".layer.1.layer_norm"),
    (r"^(encoder\S+)\.post_attention_layernorm", r"\1.layer.1.layer_norm"),
    (r"^(decoder\S+)\.post_attention_layernorm", r"\1.layer.2.layer_norm"),
    (r"^(encoder\S+\.\d)\.mlp", r"\1.layer.1.mlp"),
    (r"^(decoder\S+\.\d)\.mlp", r"\1.layer.2.mlp"),
    (r"\.router\.", ".router.classifier."),
    (r"\.up_proj\.", ".wi."),
    (r"\.down_proj\.", ".wo."),
)


def renamed(tensors):
    """Our names as theirs; the matrices of the experts lie in one tensor here and in modules there."""
    found = {}
    for name, tensor in tensors.items():
        for ours, theirs in NAMES:
            name = re.sub(ours, theirs, name)
        if ".experts." in name:
            start, end = name.split(".experts.")
            found |= {f"{start}.experts.expert_{e}.{end}": matrix for e, matrix in enumerate(tensor)}
        else:
            found[name] = tensor
    return found


@pytest.mark.oracle("mlp=moe", "transformers SwitchTransformersForConditionalGeneration")
@pytest.mark.oracle("architecture=encoder_decoder", "transformers SwitchTransformersForConditionalGeneration")
def test_logits_loss_and_gradients_of_switch_are_those_of_transformers():
    model = build_model(compose_run(SETTINGS).config, V - 1).double().eval()
    for name, p in model.named_parameters():
        torch.nn.init.normal_(p, mean=float("norm" in name), std=0.2)
    config = SwitchTransformersConfig(
        vocab_size=V, d_model=32, d_kv=10, d_ff=48, num_layers=LAYERS, num_decoder_layers=LAYERS, num_heads=4,
        num_experts=EXPERTS, num_sparse_encoder_layers=LAYERS // 2, num_sparse_decoder_layers=LAYERS // 2,
        relative_attention_num_buckets=8, relative_attention_max_distance=20, dropout_rate=0.0, expert_capacity=64,
        router_jitter_noise=0.0, attn_implementation="eager",
    )  # fmt: skip
    theirs = SwitchTransformersForConditionalGeneration(config).double().eval()
    for module in theirs.modules():
        if isinstance(module, SwitchTransformersTop1Router):
            module.dtype = torch.float64
    missing, unexpected = theirs.load_state_dict(renamed(model.state_dict()), strict=False)
    tied = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
    assert set(unexpected) <= tied and set(missing) <= tied, (missing, unexpected)
    source, tokens = torch.randint(0, V, (3, 11)), torch.randint(0, V, (3, 14))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    example = Example(inputs, targets, source=source)
    logits = theirs(input_ids=source, decoder_input_ids=inputs).logits
    close = {"rtol": 1e-5, "atol": 1e-5}  # the mean square in their norm is float32
    torch.testing.assert_close(model.logits(model.hidden(example)), logits, **close)
    total, count, _ = model.loss(example)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(total / count, loss, **close)
    (total / count).backward()
    loss.backward()
    gradients = renamed({n: p.grad for n, p in model.named_parameters()})
    expected = {n: p.grad for n, p in theirs.named_parameters()}
    assert expected.keys() - tied == gradients.keys() - tied and len(expected) > 100
    for name, gradient in expected.items():
        if name not in tied:
            ours = gradients[name]
            torch.testing.assert_close(ours, torch.zeros_like(ours) if gradient is None else gradient, **close)
