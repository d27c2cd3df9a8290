"""FlexAttention gives the numbers and gradients of the other kernels, or is not chosen; its blocks are torch's."""

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.flex_on_cpu import flex_on_cpu
from helpers.support import model_config
from torch import Tensor
from torch.nn.attention import flex_attention as theirs
from torch.nn.attention.flex_attention import create_block_mask

from ablatio.model import flex_attention as flex
from ablatio.model.attention import kernels
from ablatio.model.build import build_model
from ablatio.model.context import make_context
from ablatio.model.kv_cache import KVCache
from ablatio.model.on_meta import meta_copy
from ablatio.registry.registry import REGISTRIES
from ablatio.testing import tiny_models
from ablatio.testing.device_waits import meta_as_gpu

LENGTH, HEADS, WIDTH = 150, 4, 16
DOCUMENTS = torch.stack([torch.arange(LENGTH) // 70, (torch.arange(LENGTH) > 3).long()])
PIECES = torch.stack([torch.arange(LENGTH) // 50 % 2, torch.arange(LENGTH) // 60])
OPENED = torch.stack([torch.arange(LENGTH) < 20, torch.arange(LENGTH) < 90])


def position(name: str) -> Any:
    wiring = {"d_model": 64, "d_head": WIDTH, "n_heads": HEADS, "n_layers": 2, "max_len": LENGTH, "causal": True}
    return REGISTRIES["position"].build(name, {}, **wiring).double() if name != "none" else None


def tensors(kv_heads: int = HEADS, width: int = WIDTH) -> list[Tensor]:
    shapes = ((HEADS, WIDTH), (kv_heads, WIDTH), (kv_heads, width))
    return [torch.randn(2, h, LENGTH, d, dtype=torch.float64, requires_grad=True) for h, d in shapes]


MASKS: dict[str, dict[str, Any]] = {
    "causal": {}, "documents": {"segments": DOCUMENTS}, "pieces": {"segments": PIECES}, "prefix": {"opened": OPENED},
    "prefix in documents": {"opened": OPENED, "segments": DOCUMENTS}, "full": {"mask": "full"},
    "full documents": {"mask": "full", "segments": PIECES},
}  # fmt: skip


def context(given: dict[str, Any], name: str) -> Any:
    made = {"mask": "causal", "segments": None, **given}
    tokens = torch.zeros(2, LENGTH, dtype=torch.long)
    return make_context(
        tokens, position(name), made["mask"], made["segments"], None, torch.float64, opened=made.get("opened")
    )


@pytest.mark.parametrize("bounds", ["plain", "softcap", "sinks", "both"])
@pytest.mark.parametrize("name", ["none", "alibi", "sandwich"])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("mask", MASKS)
def test_equals_the_other_kernels(
    mask: str, window: int | None, name: str, bounds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every mask, with and without window, bias and bounds: outputs and gradients, with half the key heads."""
    calls, inputs = flex_on_cpu(monkeypatch), tensors(kv_heads=2, width=24)
    sinks = torch.randn(HEADS, dtype=torch.float64, requires_grad=True)
    cap, sunk = 2.0 if bounds in ("softcap", "both") else 0.0, sinks if bounds in ("sinks", "both") else None
    weights = torch.randn(2, HEADS, LENGTH, 24, dtype=torch.float64)
    found: dict[bool, list[Tensor]] = {}
    for allowed in (True, False):
        flex.allow(allowed)
        try:
            ctx = context(MASKS[mask], name)
            if window is not None:
                near = (ctx.q_pos[..., :, None] - ctx.k_pos[..., None, :]).abs() < window
                ctx = kernels.AttentionView.of(ctx, near, window)
            if cap or sunk is not None:
                y = kernels.attend_by_steps(*inputs, ctx, scale=0.3, softcap=cap, sinks=sunk)
            else:
                y = kernels.attend(*inputs, ctx, scale=0.3)
        finally:
            flex.allow(True)
        used = [*inputs, *([] if sunk is None else [sunk])]
        found[allowed] = [y, *torch.autograd.grad((y * weights).sum(), used)]
    plain = bounds == "plain" and name == "none" and window is None and mask in ("causal", "full")
    assert len(calls) == (0 if plain else 1), "SDPA has fused kernels for a plain causal mask and for none"
    for ours, others in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(ours, others, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("options", "position_name", "layers"),
    [
        ({"attention": {"name": "sliding", "window": 20, "full_every": 2}}, "alibi", 2),
        ({"attention": {"name": "mha", "softcap": 3.0, "sinks": True}}, "rope", 2),
        ({"attention": {"name": "gqa", "n_kv_heads": 1}}, "alibi", 2),
        ({"attention": "mla"}, "alibi", 2),
        ({"attention": "bigbird"}, "rope", 2),
        ({"attention": "differential"}, "alibi", 2),
        ({"attention": "mha"}, "t5", 0),  # a bias with weights
        ({"attention": "mha"}, "shaw", 0),  # a score
        ({"attention": "forgetting"}, "rope", 0),  # a bias of each layer
        ({"attention": "talking_heads"}, "rope", 0),  # heads are mixed
        ({"attention": "paired_heads"}, "rope", 0),  # twice as many keys
    ],
    ids=str,
)
def test_models_that_take_it(
    options: dict[str, Any], position_name: str, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed documents in whole models: loss and gradients, one list of blocks for all layers with the same mask."""
    config = model_config(**options, position=position_name, n_layers=2, n_heads=2, max_len=LENGTH, d_model=32)
    model = build_model(config, 50).double()
    tokens, calls = torch.randint(0, 50, (2, LENGTH)), flex_on_cpu(monkeypatch)
    found = []
    for allowed in (True, False):
        flex.allow(allowed)
        try:
            model.zero_grad()
            model(tokens, DOCUMENTS).square().mean().backward()
        finally:
            flex.allow(True)
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert len(calls) == layers
    own = options["attention"] == "bigbird" or "full_every" in options["attention"]  # each layer has its own mask
    masks = {id(call["block_mask"]) for call in calls}
    assert len(masks) == (layers if own else min(layers, 1)), "layers with one mask share the list of its blocks"
    for name, gradient in found[1].items():
        torch.testing.assert_close(found[0][name], gradient, rtol=1e-8, atol=1e-12, msg=name)


def test_an_alibi_kernel_makes_no_bias_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    flex_on_cpu(monkeypatch)
    ctx = context(MASKS["documents"], "alibi")
    monkeypatch.setattr(ctx.position, "bias", None)
    assert kernels.attend(*tensors(), ctx).isfinite().all()


@pytest.mark.parametrize("mask", [m for m in MASKS if m not in ("causal", "full")])
@pytest.mark.parametrize("length", [LENGTH, 128, 300])
def test_blocks_are_those_of_torch(mask: str, length: int) -> None:
    visible = context(MASKS[mask], "none").visible
    visible = visible.expand(2, 1, LENGTH, LENGTH).repeat(1, 1, 2, 2)[..., :length, :length]
    ours = flex.block_mask(visible)
    theirs = create_block_mask(lambda b, h, i, j: visible[b, 0, i, j], 2, None, length, length, device="cpu")
    assert ours.shape == theirs.shape and torch.equal(ours.to_dense(), theirs.to_dense())
    for name in ("kv_num_blocks", "kv_indices", "q_num_blocks", "q_indices"):
        for prefix in ("", "full_"):
            assert torch.equal(getattr(ours, prefix + name), getattr(theirs, prefix + name)), prefix + name


def test_long_documents_leave_whole_blocks_out() -> None:
    places = torch.arange(512)
    tokens, documents = torch.zeros(1, 512, dtype=torch.long), (places // 256).expand(1, -1)
    mask = flex.block_mask(make_context(tokens, None, "causal", documents, None, torch.float32).visible)
    assert mask.kv_num_blocks.sum() == 4 and mask.full_kv_num_blocks.sum() == 2, "of 16 blocks"


@pytest.mark.parametrize(
    ("change", "elsewhere", "chosen"),
    [
        ({}, "masked", "flex"),
        ({"bounded": True}, "steps", "flex"),
        ({"dropout": 0.1}, "masked", "masked"),
        ({"composed": True}, "steps", "steps"),
    ],
)
def test_choice(change: dict[str, Any], elsewhere: str, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = tensors()
    ctx = context(MASKS["documents"], "none")
    assert kernels.kernel_for(q, k, v, ctx, **change) == elsewhere
    flex_on_cpu(monkeypatch)
    assert kernels.kernel_for(q, k, v, ctx, **change) == chosen
    for name, value in {"LEAST": LENGTH + 1, "NARROWEST": WIDTH + 1, "DTYPES": (torch.float32,)}.items():
        with monkeypatch.context() as patch:
            patch.setattr(flex, name, value)
            assert kernels.kernel_for(q, k, v, ctx, **change) == elsewhere, name


def test_a_text_from_a_cache_is_left_to_other_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = flex_on_cpu(monkeypatch)
    model = build_model(model_config(position="alibi", max_len=LENGTH, d_model=32, n_heads=2), 50).double().eval()
    model(torch.randint(0, 50, (2, LENGTH)), None, KVCache())
    assert not calls


@pytest.mark.parametrize(
    ("attention", "position_name"),
    [("mha", "alibi"), ({"name": "mha", "softcap": 3.0, "sinks": True}, "sandwich"), ({"name": "sliding"}, "rope")],
    ids=str,
)
def test_a_step_waits_for_nothing(attention: Any, position_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed rows on the meta device in place of a GPU: no value is read, and no shape depends on one."""
    calls = flex_on_cpu(monkeypatch, devices=("meta",))
    config = model_config(attention=attention, position=position_name, n_heads=2, max_len=24)
    net = meta_copy(build_model(config, tiny_models.VOCAB)).train()
    batch = replace(tiny_models.example(2, 24), segments=torch.arange(24).div(9, rounding_mode="floor").expand(2, -1))
    with meta_as_gpu():
        tiny_models.mean_loss(net, batch.to("meta")).backward()
    assert len(calls) == config["model"]["n_layers"]


@pytest.mark.slow
def test_batches_and_bounds_share_one_compiled_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another mask, other biases of the same form and another softcap: the compiler is asked once for each form."""
    flex_on_cpu(monkeypatch)
    compiled: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph

    kernel = torch.compile(theirs.flex_attention, backend=backend, dynamic=False)
    monkeypatch.setattr(flex, "_kernel", lambda: kernel)
    torch.compiler.reset()
    forms = []
    for mask in ("documents", "pieces", "prefix in documents"):
        for softcap in (2.0, 3.0):
            ctx = context(MASKS[mask], "alibi")
            kernels.attend_by_steps(*(x.detach() for x in tensors()), ctx, scale=0.3, softcap=softcap)
            forms.append(len(compiled))
    assert forms == [1] * 6


@pytest.mark.long
@pytest.mark.filterwarnings("default")  # torch's own compiler warns about itself
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles kernels of a CPU with g++")
def test_a_compiled_kernel_reads_the_list_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's kernel for CPUs, which has no backward pass: documents, alibi, a softcap, half the key heads."""
    monkeypatch.setattr(flex, "DEVICES", ("cpu",))
    monkeypatch.setattr(flex, "LEAST", 1)
    length = 300  # three blocks, the last one in part
    documents = torch.stack([torch.arange(length) // 140, (torch.arange(length) > 3).long()])
    q, k, v = (torch.randn(2, heads, length, WIDTH) for heads in (HEADS, 2, 2))
    torch.compiler.reset()
    found = []
    for allowed in (True, False):
        flex.allow(allowed)
        try:
            tokens = torch.zeros(2, length, dtype=torch.long)
            ctx = make_context(tokens, position("alibi").float(), "causal", documents, None, torch.float32)
            assert (kernels.kernel_for(q, k, v, ctx, bounded=True) == "flex") == allowed
            with torch.no_grad():
                found.append(kernels.attend_by_steps(q, k, v, ctx, scale=0.3, softcap=2.0))
        finally:
            flex.allow(False)
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
