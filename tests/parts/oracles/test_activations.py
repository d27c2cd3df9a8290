"""Activations against those of torch and transformers, and against their formulas in loops over float64 numbers."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers.activations import ACT2FN, XIELUActivation
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from ablatio.errors import UserError
from ablatio.registry import rules
from ablatio.registry.kinds import activations

POINTS = torch.cat(
    [torch.linspace(-12, 12, 481, dtype=torch.float64), torch.tensor([0.0, -1e-9, 1e-9, 40, -40]).double()]
)


def phi(x):
    return 0.5 * math.erfc(-x / math.sqrt(2))


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def tanh_gelu(x):
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def mish(x):
    """tanh(log u) = (u^2 - 1) / (u^2 + 1) with u = 1 + e^x, written so that nothing cancels or overflows."""
    u = math.exp(-abs(x))
    return x * (1 + 2 * u) / (1 + 2 * u + 2 * u * u) if x >= 0 else x * (u * u + 2 * u) / (u * u + 2 * u + 2)


def xielu(x, p=0.8, n=0.8, beta=0.5):
    return p * x * x + beta * x if x > 0 else n * (math.expm1(x) - x) + beta * x


SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
SCALAR = {
    ("relu", None): lambda x: max(0.0, x),
    ("relu2", None): lambda x: max(0.0, x) ** 2,
    ("leaky_relu2", None): lambda x: x**2 if x > 0 else 0.25 * x**2,
    ("gelu", "none"): lambda x: x * phi(x),
    ("gelu", "tanh"): tanh_gelu,
    ("quick_gelu", None): lambda x: x * sigmoid(1.702 * x),
    ("silu", None): lambda x: x * sigmoid(x),
    ("mish", None): mish,
    ("elu", None): lambda x: x if x > 0 else math.expm1(x),
    ("selu", None): lambda x: SELU_SCALE * (x if x > 0 else SELU_ALPHA * math.expm1(x)),
    ("softplus", None): softplus,
    ("tanh", None): math.tanh,
    ("laplace", None): lambda x: phi((x - math.sqrt(0.5)) * 2 * math.sqrt(math.pi)),
    ("star_relu", None): lambda x: 0.8944 * max(0.0, x) ** 2 - 0.4472,
    ("xielu", None): xielu,
}
GATED = {
    ("glu", None): lambda gate, up: sigmoid(gate) * up,
    ("bilinear", None): lambda gate, up: gate * up,
    ("reglu", None): lambda gate, up: max(0.0, gate) * up,
    ("geglu", "none"): lambda gate, up: gate * phi(gate) * up,
    ("geglu", "tanh"): lambda gate, up: tanh_gelu(gate) * up,
    ("swiglu", None): lambda gate, up: gate * sigmoid(gate) * up,
    ("clamped_swiglu", None): lambda gate, up: min(gate, 7) * sigmoid(1.702 * min(gate, 7)) * (max(-7, min(up, 7)) + 1),
}


def made(name, approximate=None):
    part = activations.build(name, {"approximate": approximate} if approximate else {}, d_ff=4)
    return part.double() if isinstance(part, torch.nn.Module) else part


@pytest.mark.oracle("activation", "float64 loop")
@pytest.mark.parametrize("name, approximate", SCALAR, ids=str)
def test_elementwise_by_hand(name, approximate):
    expected = torch.tensor([SCALAR[name, approximate](x) for x in POINTS.tolist()], dtype=torch.float64)
    learned = name in ("star_relu", "xielu")  # their parameters are initialized in float32
    torch.testing.assert_close(made(name, approximate)(POINTS), expected, rtol=1e-6 if learned else 1e-10, atol=1e-15)


@pytest.mark.oracle("activation", "float64 loop")
@pytest.mark.parametrize("name, approximate", GATED, ids=str)
def test_gated_by_hand(name, approximate):
    up = torch.randn_like(POINTS)
    expected = [GATED[name, approximate](g, u) for g, u in zip(POINTS.tolist(), up.tolist(), strict=True)]
    actual = made(name, approximate)(POINTS, up)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-15)


@pytest.mark.oracle("activation=silu", "float64 loop")
@pytest.mark.oracle("activation=swiglu", "float64 loop")
@pytest.mark.parametrize("beta", [0.3, 1.0, 1.702, 50.0])
def test_beta_by_hand(beta):
    """beta=1.702 is quick_gelu; a large beta approaches max(0, x) and reglu."""
    expected = torch.tensor([x * sigmoid(beta * x) for x in POINTS.tolist()], dtype=torch.float64)
    up = torch.randn_like(POINTS)
    silu, swiglu = (activations.build(name, {"beta": beta}, d_ff=4) for name in ("silu", "swiglu"))
    torch.testing.assert_close(silu(POINTS), expected, rtol=1e-10, atol=1e-15)
    torch.testing.assert_close(swiglu(POINTS, up), expected * up, rtol=1e-10, atol=1e-15)
    if beta == 1:
        assert torch.equal(silu(POINTS), F.silu(POINTS))
    if beta == 1.702:
        assert torch.equal(silu(POINTS), made("quick_gelu")(POINTS))
    if beta == 50:
        assert (silu(POINTS) - F.relu(POINTS)).abs().max() < 0.3 / beta


@pytest.mark.oracle("activation=leaky_relu2", "torch leaky_relu, squared, and its ends relu2 and the square")
@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
def test_slope_of_leaky_relu2(slope):
    ours = activations.build("leaky_relu2", {"slope": slope}, d_ff=4)
    theirs = {0.0: lambda x: F.relu(x).square(), 1.0: lambda x: x * x}.get(slope, lambda x: F.leaky_relu(x, 0.5) ** 2)
    assert_all_close(value_and_gradients(ours, POINTS), value_and_gradients(theirs, POINTS), 1e-12)


def value_and_gradients(function, *inputs):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    y = function(*inputs)
    weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    return [y, *torch.autograd.grad((y * weight).sum(), inputs)]


def assert_all_close(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


TORCHS = {
    ("relu", None): F.relu,
    ("relu2", None): lambda x: F.relu(x).square(),
    ("gelu", "none"): F.gelu,
    ("gelu", "tanh"): lambda x: F.gelu(x, approximate="tanh"),
    ("silu", None): F.silu,
    ("mish", None): F.mish,
    ("elu", None): F.elu,
    ("selu", None): F.selu,
    ("softplus", None): F.softplus,
    ("tanh", None): torch.tanh,
}


@pytest.mark.oracle("activation=gelu", "torch gelu")
@pytest.mark.oracle("activation=mish", "torch mish")
@pytest.mark.oracle("activation=relu2", "torch relu, squared")
@pytest.mark.parametrize("name, approximate", TORCHS, ids=str)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 0)])
def test_elementwise_are_torchs(name, approximate, dtype, tolerance):
    """Equal to torch, up to rounding where ours uses other kernels: a slope near 1 has a few float32 units of error."""
    x = POINTS.to(dtype)
    ours, theirs = (value_and_gradients(f, x) for f in (made(name, approximate), TORCHS[name, approximate]))
    torch.testing.assert_close(ours[0], theirs[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours[1], theirs[1], rtol=3 * tolerance, atol=3 * tolerance)


@pytest.mark.oracle("activation=quick_gelu", "transformers ACT2FN")
@pytest.mark.oracle("activation=relu2", "transformers ACT2FN")
@pytest.mark.oracle("activation=mish", "transformers ACT2FN")
@pytest.mark.oracle("activation=laplace", "transformers ACT2FN")
@pytest.mark.parametrize("name", ["relu", "gelu", "quick_gelu", "relu2", "silu", "mish", "laplace", "tanh"])
def test_elementwise_are_transformers(name):
    theirs = ACT2FN["swish" if name == "silu" else name]
    # transformers rounds laplace's two constants to six digits.
    tolerance = 1e-5 if name == "laplace" else 1e-10
    assert_all_close(value_and_gradients(made(name), POINTS), value_and_gradients(theirs, POINTS), tolerance)


@pytest.mark.parametrize("length", [0, 1, (1 << 18) - 1, (1 << 18) + 3])
def test_fast_paths_accept_any_length(length):
    """Long tensors are processed in chunks."""
    x = torch.randn(length, dtype=torch.float64)
    for name, approximate in [("gelu", "tanh"), ("mish", None), ("relu2", None)]:
        ours, theirs = (value_and_gradients(f, x) for f in (made(name, approximate), TORCHS[name, approximate]))
        assert_all_close(ours, theirs, 1e-12)
        assert torch.equal(made(name, approximate)(x), ours[0])  # without a gradient


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)], ids=str)
def test_fast_paths_accept_any_strides(shape):
    """A transposed input and an expanded gradient must not affect the in-place passes."""
    x = torch.randn(shape, dtype=torch.float64)
    for name, approximate in [("gelu", "tanh"), ("mish", None), ("relu2", None)]:
        for view in (x.mT if x.dim() > 1 else x, x[..., ::2], x[..., :1].expand(shape)):
            ours, theirs = made(name, approximate), TORCHS[name, approximate]
            assert_all_close(value_and_gradients(ours, view), value_and_gradients(theirs, view), 1e-12)
            a, b = (view.detach().clone().requires_grad_() for _ in "ab")
            ours(a).sum().backward()
            theirs(b).sum().backward()
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.oracle("activation=xielu", "transformers XIELUActivation")
def test_xielu_is_transformers():
    """transformers' parameters are bfloat16 by default; compares also the gradients of the two learned ones."""
    ours, theirs = made("xielu"), XIELUActivation(dtype=torch.float64)
    x = torch.cat([torch.linspace(-12, 12, 481, dtype=torch.float64)])
    gradients = []
    for module in (ours, theirs):
        y = module(x)
        gradients.append([y, *torch.autograd.grad(y.square().sum(), [module.alpha_p, module.alpha_n])])
    assert_all_close(*gradients, 1e-5)  # theirs takes e^min(x, -1e-6), ours starts at float32's 0.8


def test_star_relu_starts_with_mean_0_and_variance_1():
    """E x+^2 = 1/2 and E x+^4 = 3/2 of normal x, so the variance of x+^2 is 5/4 and the scale sqrt(4/5)."""
    part = made("star_relu")
    torch.testing.assert_close(part.scale.item(), math.sqrt(4 / 5), rtol=0, atol=5e-5)
    torch.testing.assert_close(part.shift.item(), -math.sqrt(4 / 5) / 2, rtol=0, atol=5e-5)


@pytest.mark.oracle("activation=clamped_swiglu", "transformers GptOssExperts")
def test_clamped_swiglu_is_gpt_osss():
    gate, up = POINTS, POINTS.flip(0) * 0.7
    settings = SimpleNamespace(alpha=1.702, limit=7.0)

    def theirs(gate, up):
        return GptOssExperts._apply_gate(settings, torch.stack([gate, up], dim=-1).flatten(-2))

    assert_all_close(
        value_and_gradients(made("clamped_swiglu"), gate, up), value_and_gradients(theirs, gate, up), 1e-12
    )


@pytest.mark.oracle("activation=glu", "torch glu")
def test_glu_is_torchs():
    up, gate = torch.randn(2, 3, 8, dtype=torch.float64).unbind()
    ours, theirs = made("glu"), lambda gate, up: F.glu(torch.cat([up, gate], dim=-1))
    assert_all_close(value_and_gradients(ours, gate, up), value_and_gradients(theirs, gate, up), 1e-12)


@pytest.mark.oracle("activation=gated", "each elementwise activation, times up")
def test_gated_accepts_every_elementwise_activation():
    """gate=relu is reglu and gate=silu is swiglu; every elementwise activation can be the gate."""
    gate, up = torch.randn(2, 3, 4, dtype=torch.float64).unbind()
    for name in activations.names():
        if not activations[name].facts["gated"]:
            ours = activations.build("gated", {"gate": name}, d_ff=4).double()
            torch.testing.assert_close(ours(gate, up), made(name)(gate) * up, rtol=1e-6, atol=1e-6)
    for name, unit in [("relu", "reglu"), ("silu", "swiglu"), ("gelu", "geglu")]:
        assert torch.equal(activations.build("gated", {"gate": name}, d_ff=4)(gate, up), made(unit)(gate, up))


def test_gated_has_the_parameters_of_its_gate():
    assert [n for n, _ in activations.build("gated", {"gate": "xielu"}, d_ff=4).named_parameters()] == [
        "function.alpha_p",
        "function.alpha_n",
    ]


def test_gated_refuses_a_gate_that_is_gated():
    ours = [e.name for e in activations if e.facts["gated"] and e.module == activations["gated"].module]
    assert "swiglu" in ours
    for name in ours:
        (problem,) = rules.violated_rules({"activation": {"name": "gated", "gate": name}})
        assert problem.where == "activation.gate" and problem.fix == "activation.gate=silu"
        with pytest.raises(UserError, match="is a gated activation"):
            activations.build("gated", {"gate": name}, d_ff=4)
    assert not rules.violated_rules({"activation": {"name": "gated", "gate": "silu"}})


def test_xielu_refuses_alpha_n_not_above_beta():
    config = {"activation": {"name": "xielu", "alpha_n": 0.5, "alpha_p": 0.8, "beta": 0.5}}
    (problem,) = rules.violated_rules(config)
    assert problem.fix == "activation.alpha_n=0.8"
    with pytest.raises(UserError, match=r"alpha_n=0.5 must be above activation.beta=0.5"):
        activations.build("xielu", {"alpha_n": 0.5}, d_ff=4)


def test_relu2_can_be_differentiated_twice():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(made("relu2"), x)


@pytest.mark.parametrize("name, approximate", [("gelu", "tanh"), ("mish", None)], ids=str)
def test_a_missing_second_derivative_raises(name, approximate):
    x = torch.randn(5, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(made(name, approximate)(x).sum(), x, create_graph=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's own compiler warns about itself
def test_compiled_equals_eager():
    """Under torch.compile torch's own functions are used, in one graph."""
    parts = [made("gelu", "tanh"), made("mish"), made("relu2"), made("xielu").float(), made("star_relu").float()]

    def together(x):
        return sum(part(x) for part in parts)

    x = torch.randn(3, 50)
    torch.compiler.reset()
    compiled = torch.compile(together, fullgraph=True)
    assert_all_close(value_and_gradients(compiled, x), value_and_gradients(together, x), 1e-5)


@pytest.mark.parametrize("name", ["gelu", "mish", "relu2"])
def test_a_retained_graph_gives_the_same_gradient_again(name):
    """With retain_graph=True backward must not overwrite the tensors that it has saved."""
    x = POINTS.clone().requires_grad_()
    y = made(name, "tanh" if name == "gelu" else None)(x)
    weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype)
    kept = [torch.autograd.grad(y, x, weight, retain_graph=True)[0] for _ in range(2)]
    last = torch.autograd.grad(y, x, weight)[0]
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[0], last)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, x, weight)
