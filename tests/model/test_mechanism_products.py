"""Two mechanisms at once, of those that change weights, gradients or counts: shared layers, tied weights, PEFT,
quantization, merging, roles and rates, normalized queries."""

from typing import Any

import pytest
import torch
from helpers.support import model_config
from torch import Tensor

from ablatio.config.compose import compose_run
from ablatio.errors import ConfigError, UserError
from ablatio.model.build import build_model
from ablatio.model.context import make_context
from ablatio.model.language_model import LanguageModel
from ablatio.model.parameter_roles import apply_rates, describe, groups_by_role
from ablatio.model.peft.adapters import adapted
from ablatio.model.peft.apply import AppliedPeft, apply_peft
from ablatio.model.peft.merge import merge, wrapped_by_peft
from ablatio.model.quantized import dequantize
from ablatio.registry.kinds import inits, optimizers, pefts, quantizations
from ablatio.registry.registry import REGISTRIES

V, TOKENS = 48, torch.randint(1, 48, (2, 14), generator=torch.Generator().manual_seed(3))
SHARING: dict[str, dict[str, Any]] = {
    "own": {},
    "cycle": {"distinct_layers": 2},
    "runs": {"distinct_layers": 2, "sharing": "runs"},
    "one": {"distinct_layers": 1},
}
TIES = (True, False)
# lorahub mixes adapters from folders of trained runs (tests/parts/oracles/test_pefts_mixed.py).
METHODS = [e.name for e in REGISTRIES["peft"] if e.name not in (REGISTRIES["peft"].default, "lorahub")]
FROZEN = ("none", "int4", "int8")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, about its use by peft
QUANTIZED: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "int4": ("int4", {"group": 16}),
    "int8": ("int8", {"activations": False}),
    "qat": ("int4", {"group": 16, "qat": True}),
}


def made(sharing: str = "own", tied: bool = True, **options: Any) -> LanguageModel:
    sizes = {"d_model": 32, "n_heads": 4, "n_layers": 4, "tied": tied, "bias": True}
    config = model_config(**sizes | SHARING[sharing] | options)
    return build_model(config, V).double().eval()


def tuned(net: LanguageModel, name: str, knobs: dict[str, Any] | None = None) -> AppliedPeft:
    """The method applied, and each of its weights moved off its start."""
    part = pefts.build(name, knobs or {})
    found = apply_peft(net, part, 0)
    net.double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return found


def logits(net: LanguageModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = net(TOKENS)
    return found


def quantized(net: LanguageModel, which: str) -> None:
    name, knobs = QUANTIZED[which]
    quantizations.build(name, knobs).apply(net)


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("name", METHODS)
def test_merge_and_restore_on_shared_layers(name: str, sharing: str) -> None:
    """Merged logits equal those with adapters; restored, it is the model before, tensor by tensor, still shared."""
    net = made(sharing)
    tuned(net, name)
    dequantize(net)  # of qlora: codes cannot be merged into
    net.double()
    before, state = logits(net), {n: (t.clone(), t.data_ptr()) for n, t in net.state_dict().items()}
    adapters = len(list(adapted(net)))
    changes = adapters + len(wrapped_by_peft(net))
    try:
        merged = merge(net)
    except UserError:
        assert torch.equal(logits(net), before)
        return
    torch.testing.assert_close(logits(net), before, rtol=1e-9, atol=1e-9)
    assert merged.unshared == (sharing != "own" and changes > 0)
    merged.restore()
    assert torch.equal(logits(net), before) and len(list(adapted(net))) == adapters
    now = net.state_dict()
    assert now.keys() == state.keys()
    assert all(torch.equal(now[n], t) and now[n].data_ptr() == place for n, (t, place) in state.items())


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("which", QUANTIZED)
def test_quantization_of_shared_layers(which: str, sharing: str) -> None:
    """Each use of a shared matrix is quantized as the same matrix of a model without sharing; so is its way back."""
    net, plain = made(sharing), made("own")
    plain.load_state_dict(net.state_dict())
    for model in (net, plain):
        quantized(model, which)
        model.double()
    assert torch.equal(logits(net), logits(plain))
    codes = [m for m in net.modules() if "codes" in m._buffers]
    assert len({m._buffers["codes"].data_ptr() for m in codes}) == len(codes) * len(set(owners(net))) // 4
    coded = [sum(getattr(m, "coded", 0) for m in model.modules()) for model in (net, plain)]
    assert coded[0] * 4 == coded[1] * len(set(owners(net)))
    dequantize(net)
    dequantize(plain)
    net.double()
    plain.double()
    assert torch.equal(logits(net), logits(plain))
    assert len({p.data_ptr() for p in net.parameters()}) == len(list(net.parameters()))


def owners(net: LanguageModel) -> list[int]:
    """For each layer, which set of weights it uses."""
    return [id(layer.mlp.up_proj._parameters) for layer in net.model.layers]


@pytest.mark.parametrize("which", FROZEN)
@pytest.mark.parametrize("sharing", ["own", "cycle"])
@pytest.mark.parametrize("name", METHODS)
def test_peft_on_quantized_layers(name: str, sharing: str, which: str) -> None:
    """It starts at the quantized base if it says so, and merging after dequantizing gives the same logits."""
    net, part = made(sharing), pefts.build(name, {})
    if hasattr(part, "prepare") and which != "none":
        pytest.skip("it quantizes the base itself, and a rule refuses another quantization")
    quantized(net, which)
    start = logits(net) if not hasattr(part, "prepare") else None
    base = {n: t.clone() for n, t in net.state_dict().items()}
    apply_peft(net, part, 0)
    net.double().eval()
    if start is not None and not REGISTRIES["peft"][name].facts["virtual"]:
        torch.testing.assert_close(logits(net), start, rtol=1e-6, atol=1e-6)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    if start is not None:
        now = net.state_dict()
        assert all(torch.equal(now[n], t) for n, t in base.items() if ("codes" in n or "scales" in n) and n in now)
    before = logits(net)
    dequantize(net)
    net.double()
    torch.testing.assert_close(logits(net), before, rtol=1e-5, atol=1e-5)
    try:
        merge(net)
    except UserError:
        return
    torch.testing.assert_close(logits(net), before, rtol=1e-5, atol=1e-5)


def test_quantization_aware_training_of_frozen_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"quantization\.qat=false"):
        compose_run(["size=tiny", "quantization=int4", "quantization.qat=true", "peft=lora"])
    for refused in ("model.distinct_layers=1", "quantization=int4"):
        with pytest.raises(ConfigError, match="changes the frozen weights"):
            compose_run(["size=tiny", "peft=lora", "peft.init=pissa", refused])


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_split_weights_are_refused_where_they_cannot_be_replaced(init: str) -> None:
    for sharing, which, why in (("cycle", "none", "share their weights"), ("own", "int4", "quantized")):
        net = made(sharing)
        quantized(net, which)
        with pytest.raises(UserError, match=why):
            pefts.build("lora", {"init": init}).apply(net, 0)
    net = made("cycle", tied=False)
    pefts.build("lora", {"init": "kaiming"}).apply(net, 0)


@pytest.mark.parametrize("tied", TIES)
@pytest.mark.parametrize("sharing", SHARING)
def test_roles_count_each_weight_once(sharing: str, tied: bool) -> None:
    """A tied head is an embedding; a shared weight is in one group, with the gradients of all its uses."""
    net = made(sharing, tied)
    found = [id(p) for group in groups_by_role(net) for p in group["params"]]
    assert sorted(found) == sorted({id(p) for p in net.parameters()})
    roles = {info.role for p, info in describe(net) if p is net.lm_head.weight}
    assert roles == {"embedding" if tied else "head"}
    plain = made(
        "own", tied=False
    )  # untied, unshared: its gradients, summed over the uses, are those of the shared one
    plain.load_state_dict(net.state_dict())
    for model in (net, plain):
        (model(TOKENS) * torch.linspace(-1, 1, V, dtype=torch.float64)).sum().backward()
    uses: dict[int, list[Tensor]] = {}
    names = [n for n, _ in net.named_parameters(remove_duplicate=False)]
    for name in names:
        uses.setdefault(id(net.get_parameter(name)), []).append(plain.get_parameter(name).grad)  # type: ignore[arg-type]
    for p in net.parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, torch.stack(uses[id(p)]).sum(0), rtol=1e-8, atol=1e-10)


def rates(name: str, knobs: dict[str, Any], init: str | None, decay: float = 0.1) -> dict[str, tuple[float, float]]:
    """{parameter: (learning rate, weight decay)} with the rates of a method and of an init."""
    net = made("cycle", tied=False)
    found = tuned(net, name, knobs)
    of_init = inits.build(init, {"base_width": 8}).rate if init else None  # type: ignore[attr-defined]
    rate = found.rate(of_init)
    optimizer = optimizers.build("adamw", {"lr": 1e-3, "weight_decay": decay}, groups=groups_by_role(net, rate))
    apply_rates(optimizer, net, rate)
    groups = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    return {info.name: groups[id(p)] for p, info in describe(net) if p.requires_grad}


@pytest.mark.parametrize("init", [None, "mup"])
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_lora_plus_keeps_the_weight_decay(name: str, init: str | None) -> None:
    """Only the learning rate of B is multiplied; muP's rates divide the decay with and without it."""
    plain, plus = rates(name, {}, init), rates(name, {"lr_ratio": 16.0}, init)
    assert plain.keys() == plus.keys()
    for parameter, (rate, decay) in plus.items():
        factor = 16.0 if parameter.endswith("lora_B") else 1.0
        assert rate == pytest.approx(plain[parameter][0] * factor) and decay == plain[parameter][1], parameter
        if "lora" in parameter:
            assert plain[parameter] == pytest.approx((1e-3, 0.1) if init is None else (1e-3 / 4, 0.4))


def test_lora_plus_equals_the_peft_library() -> None:
    """Learning rates and weight decays of peft's `create_loraplus_optimizer`."""
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_loraplus_optimizer
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": V, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    theirs = get_peft_model(
        LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4)), LoraConfig(target_modules=["q_proj"])
    )
    optimizer = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, weight_decay=0.1, loraplus_weight_decay=0.1
    )
    expected = {(g["lr"], g["weight_decay"]) for g in optimizer.param_groups if g["params"]}
    assert set(rates("lora", {"lr_ratio": 16.0}, None).values()) == expected


NORMS = ["none", "rmsnorm", "layernorm", "whole_rmsnorm", "l2"]
ATTENTIONS = [(e.name, n) for e in REGISTRIES["attention"] for n in NORMS if n == "none" or e.knob("qk_norm")]


@pytest.mark.parametrize(("attention", "norm"), [pair for pair in ATTENTIONS if pair[0] != "linear"])
def test_folded_scale_gives_the_model_of_the_unfolded_one(attention: str, norm: str) -> None:
    """init=t5 with and without `fold` is the same function at the start, also where something normalizes the queries.

    attention=linear has no scale that could be folded.
    """
    knobs = {"name": attention} if norm == "none" else {"name": attention, "qk_norm": norm}
    found = [made(init={"name": "t5", "fold": fold}, attention=knobs) for fold in (True, False)]
    torch.testing.assert_close(logits(found[0]), logits(found[1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS[:-1])
def test_attention_logits_start_with_standard_deviation_one(norm: str) -> None:
    options = {"init": "t5", "attention": {"name": "mha", "qk_norm": norm}, "position": "none"}
    net = build_model(model_config(d_model=256, n_heads=4, **options), V)
    attention: Any = net.model.layers[0].self_attn
    x = torch.randn(1, 64, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ctx = make_context(torch.zeros(1, 64, dtype=torch.long), None, "causal", None, None, torch.float32)
        scores = attention.queries(x) @ attention.keys_values(x, ctx)[0].mT * attention.scale
    assert float(scores.std()) == pytest.approx(1.0, abs=0.1)


def test_an_explicit_scale_is_kept_with_normalized_queries() -> None:
    config = model_config(init="t5", attention={"name": "mha", "qk_norm": "rmsnorm"})
    config["model"] = config["model"] | {"attention_scale": 0.7}
    assert build_model(config, V).model.layers[0].self_attn.scale == 0.7
