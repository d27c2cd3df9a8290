"""PEFT methods against layers of the library peft with copied weights: forward, gradients and merged matrices."""

import math
import warnings
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import pefts
from ablatio.model.peft.adapters import Adapter, attach
from ablatio.model.peft.merge import merge

OUT, IN, RANK = 24, 16, 4


def ours(name: str, bias: bool = True, **knobs: Any) -> tuple[nn.Sequential, nn.Sequential]:
    """Two copies of a model with one linear layer in float64: with our adapter, and without."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(IN, OUT, bias=bias)).double()
    plain = nn.Sequential(nn.Linear(IN, OUT, bias=bias)).double()
    plain.load_state_dict(base.state_dict())
    pefts.build(name, {"targets": ("linear",), **knobs}).apply(base, 0)
    return base, plain


def theirs(plain: nn.Module, config: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: nn.Module = peft.inject_adapter_in_model(config(target_modules=["0"]), plain)
    return found.double()


def parameter(model: nn.Module, name: str) -> nn.Parameter:
    """The trained tensor of peft's layer whose name contains `name`."""
    found = [p for n, p in model.named_parameters() if name in n and p.requires_grad]
    assert len(found) == 1, (name, [n for n, _ in model.named_parameters()])
    return found[0]


def same(model: nn.Module, other: nn.Module, pairs: dict[str, str]) -> None:
    """Copy random weights, then compare outputs, gradients of inputs and weights, and the merged matrix.

    pairs: our parameter -> peft's; a different shape in peft is filled in the same order.
    """
    adapter: Adapter = model[0].adapter
    generator = torch.Generator().manual_seed(1)
    for name in pairs:
        p = adapter.get_parameter(name)
        p.data += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    mates = {name: parameter(other, mate) for name, mate in pairs.items()}
    for name, mate in mates.items():
        mate.data = adapter.get_parameter(name).detach().clone().view_as(mate)
    x = torch.randn(3, 5, IN, generator=generator, dtype=torch.float64)
    g = torch.randn(3, 5, OUT, generator=generator, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [net(i) for net, i in zip((model, other), inputs, strict=True)]
    torch.testing.assert_close(*outputs, rtol=1e-6, atol=1e-6)
    for y in outputs:
        y.backward(g)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-6, atol=1e-6)
    for name, mate in mates.items():
        mine = adapter.get_parameter(name).grad
        assert mine is not None and mine.abs().max() > 0, name
        torch.testing.assert_close(mine.view_as(mate), mate.grad, rtol=1e-6, atol=1e-6)
    merge(model)
    torch.testing.assert_close(model(x), outputs[0], rtol=1e-6, atol=1e-6)
    other[0].merge()
    torch.testing.assert_close(model[0].weight, other[0].get_base_layer().weight, rtol=1e-6, atol=1e-6)


LORA = {"lora_A": "lora_A", "lora_B": "lora_B"}


def lora_config(**settings: Any) -> Any:
    return lambda **targets: peft.LoraConfig(r=RANK, lora_alpha=12, **settings, **targets)


@pytest.mark.oracle("peft=lora", "peft")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stabilized", [False, True])
def test_lora(bias: bool, stabilized: bool) -> None:
    model, plain = ours("lora", bias, rank=RANK, alpha=12.0, rank_stabilized=stabilized)
    same(model, theirs(plain, lora_config(use_rslora=stabilized)), LORA)


@pytest.mark.oracle("peft=dora", "peft")
@pytest.mark.parametrize("bias", [True, False])
def test_dora(bias: bool) -> None:
    model, plain = ours("dora", bias, rank=RANK, alpha=12.0)
    same(model, theirs(plain, lora_config(use_dora=True)), LORA | {"magnitude": "magnitude"})


@pytest.mark.oracle("peft=lora", "peft")
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_initial_values_from_the_weights(init: str) -> None:
    """pissa and olora: the same B A and remaining W as in peft, and the same outputs as the base."""
    model, plain = ours("lora", rank=RANK, alpha=12.0, init=init)
    x = torch.randn(3, IN, dtype=torch.float64)
    before = plain(x)
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-6)
    other = theirs(plain.float(), lora_config(init_lora_weights=init))
    products = []
    for a, b in ((model[0].adapter.lora_A, model[0].adapter.lora_B), (parameter(other, "A"), parameter(other, "B"))):
        products.append((b @ a).detach().double())
    torch.testing.assert_close(*products, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model[0].weight, other[0].get_base_layer().weight.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.oracle("peft=lora", "autograd's own products, gradcheck")
def test_gradients_of_the_fused_layer() -> None:
    model, _ = ours("lora", rank=3)
    adapter = model[0].adapter
    adapter.lora_B.data.normal_()
    x = torch.randn(2, 3, IN, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.func.functional_call(model, {"0.adapter.lora_A": a, "0.adapter.lora_B": b}, (x,))

    assert torch.autograd.gradcheck(run, (x, adapter.lora_A, adapter.lora_B))


def test_lora_plus() -> None:
    """The learning rate of B's group is lr_ratio times that of A's."""
    from ablatio.model.parameter_roles import groups_by_role

    model, _ = ours("lora", lr_ratio=16.0)
    part = pefts.build("lora", {"lr_ratio": 16.0})
    groups = groups_by_role(model, part.rate)
    rates = {id(p): g["rate"] for g in groups for p in g["params"]}
    adapter = model[0].adapter
    assert (rates[id(adapter.lora_A)], rates[id(adapter.lora_B)]) == (1.0, 16.0)


def test_scale_of_rslora() -> None:
    model, _ = ours("lora", rank=9, alpha=6.0, rank_stabilized=True)
    assert math.isclose(model[0].adapter.scale, 2.0)


def test_second_adapter_is_refused() -> None:
    model, _ = ours("lora")
    with pytest.raises(Exception, match="already has an adapter"):
        attach(model[0], model[0].adapter)


def config_of(name: str, **settings: Any) -> Any:
    return lambda **targets: getattr(peft, name)(**settings, **targets)


@pytest.mark.oracle("peft=vera", "peft")
def test_vera() -> None:
    model, plain = ours("vera", rank=RANK)
    config = peft.VeraConfig(r=RANK, vera_dropout=0.0, target_modules=["0"])
    other = peft.VeraModel(plain, {"default": config}, "default").model.double()
    adapter = model[0].adapter
    other[0].vera_A["default"], other[0].vera_B["default"] = adapter.vera_A, adapter.vera_B
    same(model, other, {"lambda_d": "lambda_d", "lambda_b": "lambda_b"})


@pytest.mark.oracle("peft=loha", "peft")
def test_loha() -> None:
    model, plain = ours("loha", rank=RANK, alpha=12.0)
    other = theirs(plain, config_of("LoHaConfig", r=RANK, alpha=12))
    same(model, other, {f"w{i}_{x}": f"hada_w{i}_{x}" for i in "12" for x in "ab"})


@pytest.mark.oracle("peft=lokr", "peft")
@pytest.mark.parametrize("rank, factor", [(2, None), (4, None), (2, 2)])
def test_lokr(rank: int, factor: int | None) -> None:
    model, plain = ours("lokr", rank=rank, alpha=12.0, factor=factor)
    other = theirs(plain, config_of("LoKrConfig", r=rank, alpha=12, decompose_factor=factor or -1))
    same(model, other, {name: f"lokr_{name}" for name, _ in model[0].adapter.named_parameters()})


@pytest.mark.oracle("peft=fourierft", "peft")
def test_fourierft() -> None:
    model, plain = ours("fourierft", n_frequency=40, alpha=90.0)
    other = theirs(plain, config_of("FourierFTConfig", n_frequency=40, scaling=90.0))
    entries = model[0].adapter.entries
    other[0].indices["default"] = torch.stack([entries // IN, entries % IN])
    # peft's layer computes its update in float32 for every dtype of the weights.
    model.float(), other.float()
    adapter, spectrum = model[0].adapter, torch.randn(40)
    adapter.spectrum.data = spectrum
    parameter(other, "spectrum").data = spectrum.clone()
    x = torch.randn(3, IN)
    torch.testing.assert_close(model(x), other(x), rtol=1e-5, atol=1e-5)
    for net in (model, other):
        net(x).square().sum().backward()
    torch.testing.assert_close(adapter.spectrum.grad, parameter(other, "spectrum").grad, rtol=1e-4, atol=1e-4)


@pytest.mark.oracle("peft=oft", "peft")
@pytest.mark.parametrize("shared", [False, True])
def test_oft(shared: bool) -> None:
    model, plain = ours("oft", block=4, shared=shared)
    other = theirs(plain, config_of("OFTConfig", oft_block_size=4, r=0, block_share=shared, use_cayley_neumann=False))
    same(model, other, {"oft_R": "oft_R"})


@pytest.mark.oracle("peft=boft", "peft")
def test_boft() -> None:
    model, plain = ours("boft", block=4)
    other = theirs(plain, config_of("BOFTConfig", boft_block_size=4, boft_block_num=0))
    same(model, other, {"boft_R": "boft_R", "boft_s": "boft_s"})


@pytest.mark.parametrize("factors", [2, 3])
def test_boft_reaches_further_with_each_factor(factors: int) -> None:
    """R is orthogonal, and an input feature affects block * 2^(factors - 1) features."""
    model, _ = ours("boft", block=4, factors=factors)
    adapter = model[0].adapter
    adapter.boft_R.data.normal_()
    turn = adapter.matrix(torch.eye(IN, dtype=torch.float64).repeat(2, 1)[:OUT])[:IN]
    torch.testing.assert_close(turn @ turn.T, torch.eye(IN, dtype=torch.float64))
    reached = (turn.abs() > 1e-9).sum(1)
    assert reached.tolist() == [4 * 2 ** (factors - 1)] * IN


@pytest.mark.oracle("peft=hra", "peft")
def test_hra() -> None:
    model, plain = ours("hra", rank=RANK)
    same(model, theirs(plain, config_of("HRAConfig", r=RANK)), {"hra_u": "hra_u"})


@pytest.mark.oracle("peft=ia3", "peft")
@pytest.mark.parametrize("at_input", [False, True])
def test_ia3(at_input: bool) -> None:
    wanted = ["0"] if at_input else []
    model, plain = ours("ia3", feedforward=tuple(wanted))
    same(model, theirs(plain, config_of("IA3Config", feedforward_modules=wanted)), {"ia3_l": "ia3_l"})


@pytest.mark.oracle("peft=glora", "peft")
@pytest.mark.parametrize("matrix, prompt, bias", [("lora", "vector", "vector"), ("vector", "lora", "constant")])
def test_glora(matrix: str, prompt: str, bias: str) -> None:
    model, plain = ours("glora", rank=RANK, matrix=matrix, prompt=prompt, shift=bias)
    settings = {"config_A_B": matrix, "config_C": prompt, "config_D_E": bias}
    other = theirs(plain, config_of("GloraConfig", r=RANK, **settings))
    end = {"down": "default.X", "up": "default.Xu"}
    pairs = {}
    for name, _ in model[0].adapter.named_parameters():
        letter, way = name.split(".")
        low_rank = hasattr(model[0].adapter.get_submodule(letter), "up") and f"{letter}.up" in dict(
            model[0].adapter.named_parameters()
        )
        pairs[name] = f"glora_{letter}.{'default.Xd' if low_rank and way == 'down' else end[way]}"
    same(model, other, pairs)


@pytest.mark.oracle("peft=adalora", "peft")
def test_adalora() -> None:
    from peft.tuners.adalora import AdaLoraConfig, AdaLoraModel

    # peft divides by r + 1e-5, the paper by r
    model, plain = ours("adalora", rank=RANK, alpha=12.0 * RANK / (RANK + 1e-5))
    config = AdaLoraConfig(
        init_r=RANK, target_r=2, lora_alpha=12, target_modules=["0"], total_step=100, tinit=0, tfinal=0
    )
    other = AdaLoraModel(plain, config, "default").model.double()
    same(model, other, {"lora_A": "lora_A", "lora_E": "lora_E", "lora_B": "lora_B"})


@pytest.mark.oracle("peft=adalora", "peft's RankAllocator")
def test_adalora_keeps_the_same_triplets() -> None:
    from peft.tuners.adalora import AdaLoraConfig, AdaLoraModel

    from ablatio_std.pefts.adaptive_rank import AdaLoRA

    torch.manual_seed(3)
    base = nn.Sequential(nn.Linear(IN, OUT), nn.Linear(OUT, IN))
    mine, plain = nn.Sequential(nn.Linear(IN, OUT), nn.Linear(OUT, IN)), nn.Sequential(*base)
    pefts.build("adalora", {"rank": RANK}).apply(mine, 0)
    config = AdaLoraConfig(init_r=RANK, target_r=2, target_modules=["0", "1"], total_step=100, tinit=0, tfinal=0)
    tuner = AdaLoraModel(plain, config, "default")
    allocator = tuner.rankallocator
    triplets = [layer.adapter for layer in mine]
    for step in range(1, 4):
        for i, held in enumerate(triplets):
            for letter, weight in held.weights():
                mate = dict(tuner.model.named_parameters())[f"{i}.lora_{letter}.default"]
                weight.data = torch.randn(weight.shape)
                mate.data, mate.grad = weight.data.clone(), torch.randn(weight.shape)
                weight.grad = mate.grad.clone()
            held.observe(0.85, 0.85)
        allocator.update_ipt(tuner.model)
        AdaLoRA.prune(triplets, 2 * RANK - step)
        allocator.mask_to_budget(tuner.model, 2 * RANK - step)
        for i, held in enumerate(triplets):
            theirs_ = dict(tuner.model.named_parameters())[f"{i}.lora_E.default"]
            assert torch.equal(held.lora_E, theirs_) and int((held.lora_E == 0).sum()) > -1
        assert sum(int((held.lora_E == 0).sum()) for held in triplets) == step


def test_adalora_budget_is_a_cubic() -> None:
    part = pefts.build("adalora", {"rank": 12, "target_rank": 4, "warmup": 0.1, "fixed": 0.4})
    budgets = [part.budget(t, 100, 10) for t in (0, 10, 35, 60, 100)]
    assert budgets == [120, 120, int(80 * 0.5**3 + 40), 40, 40]


@pytest.mark.oracle("peft=qlora", "LoRA's formula on the matrix that its codes stand for")
def test_qlora() -> None:
    quantized = nn.Sequential(nn.Linear(IN, OUT))
    part = pefts.build("qlora", {"targets": ("linear",), "rank": RANK, "alpha": 12.0, "dropout": 0.0})
    part.prepare(quantized)
    part.apply(quantized, 0)
    layer = quantized[0]
    assert "codes" in layer._buffers
    layer.adapter.lora_B.data.normal_()
    x = torch.randn(3, IN)
    wanted = x @ (layer.weight + 3.0 * layer.adapter.lora_B @ layer.adapter.lora_A).T + layer.bias
    torch.testing.assert_close(quantized(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.oracle("peft=dora", "section 4.1, on the whole matrix by autograd")
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("norm", ["rows", "columns"])
@pytest.mark.parametrize("bias", [True, False])
def test_dora_as_the_paper_writes_it(norm: str, detach: bool, bias: bool) -> None:
    """W' = m (W0 + s B A) / |W0 + s B A|; with `detach` the denominator is a constant."""
    model, plain = ours("dora", bias, rank=RANK, alpha=12.0, norm=norm, detach=detach)
    adapter, generator = model[0].adapter, torch.Generator().manual_seed(1)
    for p in adapter.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    x = torch.randn(5, IN, generator=generator, dtype=torch.float64, requires_grad=True)
    v = plain[0].weight.detach() + 12 / RANK * adapter.lora_B @ adapter.lora_A
    length = (v.detach() if detach else v).square().sum(1 if norm == "rows" else 0, keepdim=True).sqrt()
    m = adapter.magnitude[:, None] if norm == "rows" else adapter.magnitude[None]
    assert m.numel() == (OUT if norm == "rows" else IN)
    wanted = F.linear(x, m * v / length, plain[0].bias)
    torch.testing.assert_close(model(x), wanted, rtol=1e-9, atol=1e-9)
    learnt = [x, *adapter.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad(model(x).square().sum(), learnt),
        torch.autograd.grad(wanted.square().sum(), learnt),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)
    merge(model)
    torch.testing.assert_close(model(x), wanted, rtol=1e-9, atol=1e-9)
