"""`checkpointing=full` stores less; losses and gradients are bitwise unchanged, for all parts."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from ablatio.config.kind_lists import shaping
from ablatio.model.activation_checkpointing import Offloaded, Recomputed
from ablatio.model.build import build_model
from ablatio.model.builder import PartChoice
from ablatio.model.cost.flops import head_flops, recomputed_flops
from ablatio.model.cost.memory import memory_of
from ablatio.model.cost.parameters import measure
from ablatio.model.language_model import LanguageModel, loss_of
from ablatio.model.parameter_roles import named_generator
from ablatio.model.peft.apply import tune
from ablatio.model.records import Record
from ablatio.registry import kinds
from ablatio.registry.registry import REGISTRIES
from ablatio.testing import tiny_models

KINDS = shaping()
B, T, D = 4, 24, 32


def with_full(config: Mapping[str, Any], segment: int = 1) -> dict[str, Any]:
    return {**config, "checkpointing": {"name": "full", "segment": segment}}


def stepped(config: Mapping[str, Any], packed: bool = False) -> tuple[LanguageModel, Tensor, Tensor]:
    """Model and loss after a backward pass, and the next random numbers."""
    model = build_model(config, tiny_models.VOCAB).train()
    if config["peft"]["name"] != "none" or config["quantization"]["name"] != "none":
        tune(model, config, 0)
    choice = PartChoice.of(config["objective"])
    make: Any = kinds.objectives.build(choice.name, choice.knobs, vocab_size=tiny_models.VOCAB, eos=0, max_len=T)
    segments = torch.arange(T + 1).div(9, rounding_mode="floor").expand(B, -1) if packed else None
    example = make(tiny_models.tokens(B, T + 1), segments, named_generator(0, "recompute"))
    if hasattr(make, "learn_from"):
        make.learn_from(build_model(config, tiny_models.VOCAB, seed=1))
    torch.manual_seed(0)
    total, weight, _ = loss_of(make, model, example)
    (total / weight.clamp(min=1)).backward()
    return model, total.detach(), torch.rand(2)


def assert_same_step(config: Mapping[str, Any], what: str, packed: bool = False, segment: int = 1) -> None:
    plain, ours = stepped(config, packed), stepped(with_full(config, segment), packed)
    assert torch.equal(plain[1], ours[1]) and torch.equal(plain[2], ours[2]), what
    for (name, p), q in zip(plain[0].named_parameters(), ours[0].parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), f"{what}: {name}"
        assert p.grad is None or torch.equal(p.grad, q.grad), f"{what}: {name}"
    for (name, b), c in zip(plain[0].named_buffers(), ours[0].named_buffers(), strict=True):
        assert torch.equal(b, c[1]), f"{what}: {name} has moved twice"


@pytest.mark.parametrize("kind", KINDS)
def test_step_is_identical_with_every_option(kind: str) -> None:
    for entry in REGISTRIES[kind]:
        assert_same_step(tiny_models.config(entry, n_layers=3, dropout=0.1), f"{kind}={entry.name}")


SELECTIVE = {"name": "selective", "parts": ("attention", "mlp"), "stored": ("mm", "addmm")}


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("kind", "option"), [(k, e.name) for k in ("attention", "mlp", "position", "block") for e in REGISTRIES[k]]
)
def test_step_is_identical_if_parts_are_recomputed(kind: str, option: str) -> None:
    config = tiny_models.config(REGISTRIES[kind][option], n_layers=2, dropout=0.1)
    plain = stepped(config, packed=True)
    for again in (SELECTIVE, SELECTIVE | {"stored": ()}):
        ours = stepped({**config, "checkpointing": again}, packed=True)
        assert torch.equal(plain[1], ours[1]) and torch.equal(plain[2], ours[2])
        for (name, p), q in zip(plain[0].named_parameters(), ours[0].parameters(), strict=True):
            assert (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad), name


@pytest.mark.oracle("checkpointing=selective", "the FLOPs of q k^T and of the weighted sum, 4 T D for each token")
def test_recomputed_flops_are_those_of_the_attention_core() -> None:
    config = tiny_models.config(d_model=32, n_layers=2, n_heads=4, max_len=32)
    config["checkpointing"] = {"name": "selective", "parts": ("attention",), "stored": ("mm", "addmm")}
    assert recomputed_flops(config, tiny_models.VOCAB) == 2 * 4 * 32 * 32
    config["checkpointing"]["stored"] = ()  # and the projections q, k, v; o is not needed again
    assert recomputed_flops(config, tiny_models.VOCAB) == 2 * (4 * 32 * 32 + 3 * 2 * 32 * 32)
    config["checkpointing"] = {"name": "none"}
    assert recomputed_flops(config, tiny_models.VOCAB) == 0


@pytest.mark.slow
def test_recomputed_flops_of_whole_layers_are_a_forward_pass() -> None:
    """All products of the layers but each last one, down_proj, whose result the backward pass does not read."""
    config = tiny_models.config(n_layers=5)
    plain = measure(config, tiny_models.VOCAB)
    head = head_flops(config, tiny_models.VOCAB)
    down = 5 * 2 * 32 * build_model(config, tiny_models.VOCAB).model.layers[0].mlp.down_proj.in_features
    assert recomputed_flops(with_full(config), tiny_models.VOCAB) == plain.flops_per_token - head - down


def test_selective_stores_less_where_the_core_stores_all_scores() -> None:
    """Softcapped scores are (B, H, T, S) tensors: the estimate, and what is really kept, fall by most of them."""
    knobs = {"softcap": 5.0}
    config = tiny_models.config(REGISTRIES["attention"]["mha"], knobs, n_layers=3, max_len=128)
    again = {**config, "checkpointing": {"name": "selective", "parts": ("attention",), "stored": ("mm", "addmm")}}
    plain, ours = (memory_of(c, tiny_models.VOCAB).activations for c in (config, again))
    assert plain - ours > 3 * 2 * 4 * 128 * 128 * 4  # at least two tensors of scores in each of three layers


@pytest.mark.oracle("checkpointing=offload", "the plain pass, bit for bit, and a device that holds no activations")
def test_offloaded_activations_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy stands for that on the CPU: all that the layers keep but the weights goes there, and is read there."""
    moved: list[int] = []

    def to_host(self: Offloaded, tensor: Tensor) -> Tensor:
        moved.append(tensor.numel())
        return tensor.clone()

    monkeypatch.setattr(Offloaded, "to_host", to_host)
    config = tiny_models.config(n_layers=3, dropout=0.1)
    plain, ours = stepped(config), stepped({**config, "checkpointing": {"name": "offload"}})
    assert torch.equal(plain[1], ours[1]) and len(moved) > 3 * 8
    for (name, p), q in zip(plain[0].named_parameters(), ours[0].parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name


def test_a_copy_of_a_model_recomputes_its_own_parts() -> None:
    """A reference is a deep copy: it must not read the weights of the model that is trained."""
    model = build_model({**tiny_models.config(), "checkpointing": SELECTIVE}, tiny_models.VOCAB)
    other = copy.deepcopy(model)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.zero_()
    batch = tiny_models.example()
    assert tiny_models.mean_loss(model, batch) != tiny_models.mean_loss(other, batch)
    assert other.model.layers[0].self_attn.forward.part[0] is other.model.layers[0].self_attn


@pytest.mark.parametrize(
    "kind, name, knobs",
    [
        ("mlp", "deepseek_moe", {"bias_rate": 0.1, "balance": 0.0}),  # its bias moves in each pass
        ("position", "t5", {}),  # its table's gradient goes through a mask that all layers share
        ("attention", "value_residual", {}),
        ("placement", "drop_path", {"rate": 0.5}),
        ("peft", "prefix", {}),
        ("peft", "qlora", {}),
        ("peft", "lora", {"dropout": 0.3}),
        ("quantization", "int8", {"qat": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("segment", [1, 2, 9])
def test_identical_with_shared_or_stateful_layers(kind: str, name: str, knobs: Any, segment: int) -> None:
    config = tiny_models.config(REGISTRIES[kind][name], knobs, n_layers=4, dropout=0.1)
    assert_same_step(config, name, packed=True, segment=segment)


@pytest.mark.oracle("checkpointing=full", "torch.autograd.grad of one layer after the other, from the kept streams")
@pytest.mark.parametrize("segment", [1, 2, 3])
def test_backward_by_hand_from_the_stored_streams(segment: int) -> None:
    """The backward pass reads only the streams before the segments: apply the chain rule to each layer by hand."""
    model = tiny_models.model(n_layers=5).double()
    layers, tokens = list(model.model.layers), tiny_models.tokens(B, T)
    ctx = model.model.contexts(tokens, None, None, torch.float64, None, None, None)[0]
    x, kept, direction = torch.randn(B, T, D).double(), [], torch.randn(B, T, D).double()
    with torch.no_grad():
        for number, layer in enumerate(layers):
            if number % segment == 0:
                kept.append(x)
            x = layer(x, ctx)
    expected, flowing = {}, direction
    for number in reversed(range(len(kept))):
        start = kept[number].clone().requires_grad_()
        y, group = start, layers[number * segment : (number + 1) * segment]
        for layer in group:
            y = layer(y, ctx)
        weights = [p for layer in group for p in layer.parameters()]
        flowing, *gradients = torch.autograd.grad(y, [start, *weights], flowing)
        expected |= dict(zip(weights, gradients, strict=True))
    start = torch.nn.Parameter(kept[0].clone())
    Recomputed(segment)(layers, start, ctx).backward(direction)
    torch.testing.assert_close(start.grad, flowing, rtol=1e-12, atol=1e-14)
    for p, gradient in expected.items():
        torch.testing.assert_close(p.grad, gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("segment", [1, 2, 4, 16])
def test_only_streams_between_segments_are_stored(segment: int) -> None:
    """L / s streams, and that of the last layer."""
    model = build_model(with_full(tiny_models.config(n_layers=9), segment), tiny_models.VOCAB).train()
    kept, weights = {}, {p.data_ptr() for p in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tuple(tensor.shape)
        return tensor

    model.model.norm = None  # it keeps what the last layer gives
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model.through(torch.randn(B, T, D).requires_grad_(), _context(model))
    assert sorted(kept.values()) == [(B, T, D)] * (-(-8 // segment) + 1)


def _context(model: LanguageModel) -> Any:
    return model.model.contexts(tiny_models.tokens(B, T), None, None, torch.float32, None, None, None)


@pytest.mark.slow
def test_memory_estimate_includes_checkpointing() -> None:
    """Stored streams and one segment of layers: L / s streams and s layers' activations."""
    config, stream = tiny_models.config(n_layers=16), 4 * 32 * D  # of one row of max_len tokens, in bytes
    plain, *found = (
        memory_of(with_full(config, segment) if segment else config, tiny_models.VOCAB).activations
        for segment in (0, 1, 2, 4)
    )
    layer = plain / 16
    for segment, bytes_ in zip((1, 2, 4), found, strict=True):
        assert bytes_ == pytest.approx(16 / segment * stream + segment * layer, rel=0.1)


def test_answers_are_processed_as_whole_rows() -> None:
    """The cache holds a prompt that was read once, and recomputation would store it there twice."""
    config = tiny_models.config()
    assert (
        build_model(config, tiny_models.VOCAB).shared_prefix
        and not build_model(with_full(config), tiny_models.VOCAB).shared_prefix
    )


def test_measures_are_not_counted_twice() -> None:
    config = with_full(tiny_models.config(REGISTRIES["mlp"]["moe"], n_layers=3))
    record, model = Record(), build_model(config, tiny_models.VOCAB).train()
    states = model.hidden(tiny_models.example(), record)
    before = dict(record.measures)
    (states.sum() + sum(record.losses.values())).backward()
    assert before and record.measures == before


@pytest.mark.long
@pytest.mark.filterwarnings("default")  # torch's own compiler warns about itself
def test_compiled_layers_are_recomputed_too() -> None:
    torch._dynamo.reset()
    gradients = []
    for config in (tiny_models.config(n_layers=3), with_full(tiny_models.config(n_layers=3))):
        model = build_model(config, tiny_models.VOCAB).train()
        model.compile_layers()
        tiny_models.mean_loss(model, tiny_models.example()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)
