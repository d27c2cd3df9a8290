"""Our methods on unmodified models of transformers: the invariants of PEFT hold."""

import os
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from ablatio import pefts, quantizations
from ablatio.errors import UserError
from ablatio.model.peft.merge import merge

V, D = 64, 32
FORMS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, {
        "hidden_size": D, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "mlp_bias": True, "pad_token_id": 0}),
    "gpt2": (transformers.GPT2LMHeadModel, transformers.GPT2Config, {
        "n_embd": D, "n_layer": 2, "n_head": 4, "n_positions": 32}),
    "t5": (transformers.T5ForConditionalGeneration, transformers.T5Config, {
        "d_model": D, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}),
}  # fmt: skip
LINEAR = {"llama": "q_proj", "gpt2": "c_attn", "t5": "q"}
FEED_FORWARD = {"llama": "mlp", "gpt2": "mlp", "t5": "DenseReluDense"}
KNOBS: dict[str, dict[str, Any]] = {
    "lora": {}, "dora": {}, "adalora": {}, "dylora": {}, "vera": {"rank": 8}, "loha": {}, "lokr": {"rank": 2},
    "fourierft": {"n_frequency": 20}, "oft": {}, "boft": {}, "hra": {}, "ia3": {"feedforward": ()}, "glora": {},
    "hf": {"method": "lora"},
}  # fmt: skip
BETWEEN = ("adapter", "parallel_adapter")
OWN = ("bitfit", "lntuning")


def model_of(form: str) -> nn.Module:
    torch.manual_seed(0)
    kind, config, settings = FORMS[form]
    made: nn.Module = kind(config(vocab_size=V, **settings)).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return made


def logits(model: Any, rows: Tensor) -> Tensor:
    more = {"decoder_input_ids": rows} if model.config.is_encoder_decoder else {}
    found: Tensor = model(input_ids=rows, **more).logits
    return found


def knobs_of(name: str, form: str) -> dict[str, Any]:
    if name in OWN:
        return {}
    return {"targets": (FEED_FORWARD[form] if name in BETWEEN else LINEAR[form],), **KNOBS.get(name, {})}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [*KNOBS, *BETWEEN, *OWN])
def test_the_invariants_of_peft(name: str, form: str) -> None:
    """Initially equal to the base, frozen base bit for bit, a lower loss after training, merging and unmerging."""
    if (name, form) == ("bitfit", "t5"):
        pytest.skip("T5 has no bias")
    net, rows = model_of(form), torch.randint(1, V, (2, 12), generator=torch.Generator().manual_seed(3))
    part = pefts.build(name, knobs_of(name, form))
    with torch.no_grad():
        before = logits(net, rows)
        part.apply(net, 0)
        after = logits(net, rows)
    assert (after - before).abs().max() <= (0.0 if part.__class__.__dict__.get("exact", True) else 1e-5)
    trains = {n for n, p in net.named_parameters() if p.requires_grad}
    frozen = {n: p.clone() for n, p in net.named_parameters() if not p.requires_grad}
    assert trains and frozen
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(6):
        loss = torch.nn.functional.cross_entropy(logits(net, rows)[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    held = dict(net.named_parameters())
    assert all(torch.equal(held[n], p) for n, p in frozen.items())
    with torch.no_grad():
        tuned = logits(net, rows)
        if name in BETWEEN:
            with pytest.raises(UserError, match="cannot be merged into it"):
                merge(net)
        else:
            merged = merge(net)
            torch.testing.assert_close(logits(net, rows), tuned, rtol=1e-4, atol=1e-4)
            merged.restore()
        assert torch.equal(logits(net, rows), tuned)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_environment_is_restored() -> None:
    """peft's BOFT sets CXX=gcc where it finds no CUDA compiler, and code that torch compiles later would fail."""
    before = dict(os.environ)
    knobs = {"method": "boft", "targets": ("q_proj",), "settings": ("boft_block_size=4",)}
    pefts.build("hf", knobs).apply(model_of("llama"), 0)
    assert dict(os.environ) == before


def test_layers_that_cannot_be_quantized_are_refused() -> None:
    """transformers' GPT-2 stores transposed matrices in its own layer class."""
    with pytest.raises(UserError, match=r"Conv1D.*\n.*try: model=hf"):
        quantizations.build("int8").apply(model_of("gpt2"))
    net = model_of("llama")
    quantizations.build("int4").apply(net)
    assert sum("codes" in m._buffers for m in net.modules()) == 14
