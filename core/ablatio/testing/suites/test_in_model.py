"""Parts in a small default model: properties that every model must have."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ablatio.model.cost.parameters import measure
from ablatio.model.decoding import token_steps
from ablatio.model.decoding.shared_prefix import answer_states
from ablatio.model.kv_cache import KVCache
from ablatio.model.language_model import LanguageModel
from ablatio.registry.registry import REGISTRIES, PartSpec, Registry
from ablatio.testing import checks, tiny_models

DEVICES = ("meta", "cuda") if torch.cuda.is_available() else ("meta",)
EXACT = 1e-9  # of float64 models, relative


def KINDS(registry: Registry[Any]) -> bool:  # noqa: N802
    """True for kinds of which the forward pass consists, including those of plugins."""
    return registry.scope == "model"


def _model(part: PartSpec) -> LanguageModel:
    return tiny_models.model(part).double().eval()


def _causal(part: PartSpec) -> None:
    name = tiny_models.config(part)["architecture"]["name"]
    if REGISTRIES["architecture"][name].facts["mask"] not in ("causal", "prefix"):
        pytest.skip(f"architecture={name} is not causal")


@torch.no_grad()
def test_causality(part: PartSpec) -> None:
    """Tokens after position t do not change the logits up to t at all."""
    _causal(part)
    net, tokens = _model(part), tiny_models.tokens()
    changed = tokens.clone()
    changed[:, 15:] = changed[:, 15:] % (tiny_models.VOCAB - 1) + 1
    gap = (net(tokens) - net(changed))[:, :15].abs().max()
    assert gap == 0, f"{checks.label(part)}: tokens from 15 on change the logits before them by {gap:.3g}; expected 0"


@torch.no_grad()
def test_rows_by_themselves(part: PartSpec) -> None:
    net, tokens = _model(part), tiny_models.tokens()
    order = torch.tensor([2, 0, 3, 1])
    checks.near(part, net(tokens[order]), net(tokens)[order], "rows of a batch in another order", EXACT)
    checks.near(part, net(tokens[:1]), net(tokens)[:1], "a row alone and in a batch", EXACT)


@torch.no_grad()
def test_packed_is_separate(part: PartSpec) -> None:
    """Two documents packed in a row equal each alone, and changing the first does not affect the second."""
    if not tiny_models.attention_facts(part)["takes_segments"]:
        pytest.skip("its attention does not take packed documents (takes_segments = False)")
    net, tokens = _model(part), tiny_models.tokens()
    segments = torch.zeros_like(tokens)
    segments[:, 11:] = 1
    packed, alone = net(tokens, segments), torch.cat([net(tokens[:, :11]), net(tokens[:, 11:])], dim=1)
    checks.near(part, packed, alone, "documents packed in a row and each alone", EXACT)
    changed = tokens.clone()
    changed[:, :11] = changed[:, :11] % (tiny_models.VOCAB - 1) + 1
    gap = (net(changed, segments) - packed)[:, 11:].abs().max()
    assert gap == 0, f"{checks.label(part)}: a document changes the logits of the next one by {gap:.3g}; expected 0"


@torch.no_grad()
def test_cached_decoding_is_the_full_pass(part: PartSpec) -> None:
    _causal(part)
    if not tiny_models.attention_facts(part)["caches"]:
        pytest.skip("its attention keeps no cache (caches = False)")
    net, tokens = _model(part), tiny_models.tokens()
    cache, logits, start = KVCache(), [], 0
    for length in (10, 1, 1, 5, 1, 6):
        logits.append(net(tokens[:, start : start + length], cache=cache))
        start += length
    checks.near(part, torch.cat(logits, dim=1), net(tokens), "decoding with the KV cache and the full pass", EXACT)


@torch.no_grad()
def test_replayed_decoding_is_the_full_pass(part: PartSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that may be replayed as CUDA graphs, by the check of the first token, give the logits of the full pass."""
    _causal(part)
    if not tiny_models.attention_facts(part)["caches"]:
        pytest.skip("its attention keeps no cache (caches = False)")
    monkeypatch.setattr(token_steps, "graphs_for", lambda device: checks.Unreplayed())
    net, tokens = _model(part), tiny_models.tokens(length=6 + token_steps.LEAST)
    steps = token_steps.TokenSteps(net, KVCache(), token_steps.LEAST)
    logits = [net(tokens[:, :6], cache=steps.cache)[:, -1]]
    logits += [steps.extend(column) for column in tokens[:, 6:].unbind(1)]
    if steps.refused:
        pytest.skip(f"its steps are not replayed: {steps.refused}")
    checks.near(part, torch.stack(logits, dim=1), net(tokens)[:, 5:], "replayed decoding and the full pass", EXACT)


def test_a_prompt_read_once_is_learnt_as_in_whole_rows(part: PartSpec) -> None:
    """Answers that share an encoded prompt have the states and gradients of full rows, in training."""
    net = tiny_models.model(part).double().train()
    if not net.shared_prefix:
        pytest.skip("it needs full rows: no cache, no padding, or batch_dependent = True")
    prompts, answers, weights = (
        tiny_models.tokens(2, 12),
        tiny_models.tokens(4, 7, seed=1),
        torch.randn(4, 7, 32).double(),
    )
    lengths, parents = torch.tensor([12, 8]), torch.tensor([0, 1, 1, 0])
    states, gradients = [], []
    for net.shared_prefix in (True, False):
        states.append(answer_states(net, prompts, lengths, parents, answers))
        loss = (states[-1] * weights).sum()
        gradients.append(torch.autograd.grad(loss, list(net.parameters()), allow_unused=True))
    checks.near(part, states[0].detach(), states[1].detach(), "the states behind a prompt that was read once", 1e-10)
    for (name, _), once, whole in zip(net.named_parameters(), *gradients, strict=True):
        assert (once is None) == (whole is None), f"{checks.label(part)}: {name} has a gradient in one of the two"
        if once is not None and whole is not None:
            checks.near(part, once, whole, f"the gradient of {name}, of prompts read once and of whole rows", 1e-10)


def test_starts_undecided(part: PartSpec) -> None:
    net = tiny_models.model(part)
    loss, expected = float(tiny_models.mean_loss(net, tiny_models.example()).detach()), math.log(net.vocab_size)
    came = f"the loss at initialization is {loss:.3f}; expected ln(vocabulary) = {expected:.3f} +- 0.1"
    assert abs(loss - expected) < 0.1, f"{checks.label(part)}: {came}"


def test_gradient_reaches_every_parameter(part: PartSpec) -> None:
    """Within six steps every parameter gets a gradient; a gain initialized to 0 blocks it in the first."""
    net = tiny_models.model(part)
    optimizer, lost = tiny_models.adamw(net), {n for n, p in net.named_parameters() if p.requires_grad}

    class Look:
        def before_step(self, step: Any) -> None:
            lost.intersection_update(checks.without_gradient(net))

    tiny_models.run(net, optimizer, 6, hooks=[Look()])
    assert not lost, f"{checks.label(part)}: in 6 steps no gradient reaches {', '.join(sorted(lost))}"


def test_learns_one_batch(part: PartSpec) -> None:
    net = tiny_models.model(part)
    losses = tiny_models.run(net, tiny_models.adamw(net), 60)
    checks.finite(part, torch.tensor(losses), "in the loss")
    came = f"60 steps of AdamW on one batch go from {losses[0]:.3f} to {losses[-1]:.3f}; expected at most half"
    assert losses[-1] < losses[0] / 2, f"{checks.label(part)}: {came}"


@torch.no_grad()
def test_weights_go_through_a_file(part: PartSpec) -> None:
    """Everything the logits depend on is in the state_dict or follows from the config."""
    from safetensors.torch import load, save

    net, other = tiny_models.model(part), tiny_models.model(part, seed=1)
    seen: dict[int, str] = {}
    state = {n: t.contiguous() for n, t in net.state_dict().items() if seen.setdefault(t.data_ptr(), n) == n}
    missing, unexpected = other.load_state_dict(load(save(state)), strict=False)
    lost = [n for n in [*missing, *unexpected] if n in state]
    assert not lost, f"{checks.label(part)}: {lost} are not restored from the state_dict"
    same = torch.equal(net.eval()(tiny_models.tokens()), other.eval()(tiny_models.tokens()))
    assert same, f"{checks.label(part)}: a model with the loaded weights gives other logits; is a tensor no buffer?"


def test_autocast_bfloat16(part: PartSpec) -> None:
    net, batch = tiny_models.model(part), tiny_models.example()
    wide = tiny_models.mean_loss(net, batch).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = tiny_models.mean_loss(net, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    checks.near(part, loss.detach().float(), wide, "the loss in bfloat16 and in float32", 0.02)
    for name, p in net.named_parameters():
        if p.grad is not None:
            checks.finite(part, p.grad, f"in the gradient of {name} in bfloat16")


@pytest.mark.parametrize("device", DEVICES)
def test_moves(part: PartSpec, device: str) -> None:
    net = tiny_models.model(part)
    expected = net.eval()(tiny_models.tokens()).detach()
    net.to(device)
    stayed = [name for name, tensor in _held(net) if tensor.device.type != device]
    assert not stayed, f"{checks.label(part)}: {stayed} are not moved by .to({device!r}); register them as buffers"
    logits = net(tiny_models.tokens().to(device))
    assert logits.device.type == device, f"{checks.label(part)}: the logits are on {logits.device}"
    if device == "cuda":
        checks.near(part, logits.cpu(), expected, "logits on the GPU and on the CPU", 1e-3)


def _held(net: nn.Module) -> list[tuple[str, Tensor]]:
    """All tensors held by modules or plain objects in them, including those that `.to` does not move."""
    found = []
    for path, module in net.named_modules():
        found += [(f"{path}.{n}", t) for n, t in module.named_parameters(recurse=False)]
        found += [(f"{path}.{n}", t) for n, t in module.named_buffers(recurse=False)]
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                found.append((f"{path}.{name}", value))
            elif not name.startswith("_") and not isinstance(value, nn.Module) and hasattr(value, "__dict__"):
                found += [(f"{path}.{name}.{n}", v) for n, v in vars(value).items() if isinstance(v, Tensor)]
    return found


def test_is_counted(part: PartSpec) -> None:
    size, net = measure(tiny_models.config(part), tiny_models.VOCAB), tiny_models.model(part)
    parameters = sum(p.numel() for p in net.parameters())
    came = f"{size.parameters} parameters are counted, the model has {parameters}"
    assert size.parameters == parameters, f"{checks.label(part)}: {came}"
    assert size.flops_per_token > 0, f"{checks.label(part)}: {size.flops_per_token} FLOPs per token are counted"
