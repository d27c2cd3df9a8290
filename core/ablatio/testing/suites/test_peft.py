"""PEFT: a frozen base and few trained weights; in training, packed, cached, merged and restored."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ablatio.errors import UserError
from ablatio.model.decoding.shared_prefix import answer_states
from ablatio.model.kv_cache import KVCache
from ablatio.model.parameter_roles import groups_by_role, named_generator
from ablatio.model.peft.adapters import adapted
from ablatio.model.peft.merge import merge
from ablatio.registry.registry import REGISTRIES, PartSpec
from ablatio.testing import checks, sample_parts, tiny_models

KINDS = ("peft",)
ROUNDING = 1e-5


def test_starts_at_the_base(part: PartSpec) -> None:
    if part.facts["virtual"]:
        pytest.skip("its virtual tokens are read from step 0 on (virtual = True)")
    net, tokens = tiny_models.model(part), tiny_models.tokens()
    made = sample_parts.peft(part)
    if hasattr(made, "prepare"):
        made.prepare(net)
    with torch.no_grad():
        before = net.eval()(tokens)
        made.apply(net, 0)
        after = net.eval()(tokens)
    apart = float((after - before).abs().max())
    allowed = 0.0 if part.facts["exact"] else ROUNDING
    assert apart <= allowed, (
        f"{checks.label(part)}: at step 0 its logits differ by {apart:g} from the base's; expected {allowed:g}"
    )


def test_base_stays_as_it_is(part: PartSpec) -> None:
    """Frozen weights are unchanged bit for bit after training steps."""
    net, made = sample_parts.tuned(part)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    trains = {name for name, p in net.named_parameters(remove_duplicate=False) if p.requires_grad}
    assert trains, f"{checks.label(part)}: nothing trains"
    buffers = {name for name, _ in net.named_buffers() if ".adapter." in f".{name}"}
    tiny_models.tune(net, made, 5)
    after = net.state_dict()
    moved = [n for n, t in after.items() if n not in trains | buffers and not torch.equal(t, before[n])]
    assert not moved, f"{checks.label(part)}: {moved[0]} is frozen and has moved"
    assert any(not torch.equal(after[n], before[n]) for n in trains), f"{checks.label(part)}: 5 steps move nothing"


def test_few_weights_train(part: PartSpec) -> None:
    net, _ = sample_parts.tuned(part, {name: 2 for name in ("rank", "size", "tokens", "hidden") if part.knob(name)})
    total = sum(p.numel() for p in tiny_models.model(part).parameters())
    trains = sum(p.numel() for p in net.parameters() if p.requires_grad)
    if part.name != REGISTRIES["peft"].default:
        assert trains < total / 2, f"{checks.label(part)}: {trains} of {total} parameters train"


def test_a_prompt_read_once_teaches_what_whole_rows_teach(part: PartSpec) -> None:
    """Answers that share encoded prompts of two lengths have the states and gradients of full rows, in training."""
    if part.facts["batch_dependent"]:
        pytest.skip("it needs full rows (batch_dependent = True)")
    net, _ = sample_parts.tuned(part, {"dropout": 0.0} if part.knob("dropout") else None)
    net.double().train()
    learnt = [p for p in net.parameters() if p.requires_grad]
    for i, p in enumerate(learnt):
        p.data += 0.05 * torch.randn(p.shape, generator=named_generator(i, "start"), dtype=torch.float64)
    prompts, answers, weights = (
        tiny_models.tokens(2, 12),
        tiny_models.tokens(4, 7, seed=1),
        torch.randn(4, 7, 32).double(),
    )
    lengths, parents = torch.tensor([12, 8]), torch.tensor([0, 1, 1, 0])
    found = []
    for net.shared_prefix in (True, False):
        states = answer_states(net, prompts, lengths, parents, answers)
        found.append((states.detach(), *torch.autograd.grad((states * weights).sum(), learnt, allow_unused=True)))
    for once, whole in zip(*found, strict=True):
        assert (once is None) == (whole is None), f"{checks.label(part)}: a weight has a gradient in one of the two"
        if once is not None:
            checks.near(part, once, whole, "prompts read once and whole rows", 1e-10)


def test_learns(part: PartSpec) -> None:
    net, made = sample_parts.tuned(part)
    losses = tiny_models.tune(net, made, 30, lr=3e-2)
    checks.finite(part, torch.tensor(losses), "in the loss")
    assert min(losses[-5:]) < losses[0] - 0.003, f"{checks.label(part)}: {losses[0]:.4f} becomes {losses[-1]:.4f}"


def _logits(net: nn.Module, tokens: Tensor, **given: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = net.eval()(tokens, **given)
    return found


def test_looks_back_only(part: PartSpec) -> None:
    net, tokens = sample_parts.tuned_and_trained(part), tiny_models.tokens()
    other = torch.cat([tokens[:, :12], tiny_models.tokens(seed=9)[:, 12:]], dim=1)
    apart = (_logits(net, tokens) - _logits(net, other))[:, :12].abs().max()
    assert apart == 0, f"{checks.label(part)}: later tokens change the logits by {apart:g}"


def test_decodes_with_the_cache(part: PartSpec) -> None:
    net, tokens, cache = sample_parts.tuned_and_trained(part), tiny_models.tokens(2), KVCache()
    whole = _logits(net, tokens)
    pieces = [_logits(net, tokens[:, a:b], cache=cache) for a, b in ((0, 9), (9, 10), (10, 24))]
    apart = float((torch.cat(pieces, 1) - whole).abs().max())
    assert apart < 1e-9, f"{checks.label(part)}: cached decoding differs from one full pass by {apart:g}"


def test_packed_documents_are_alone(part: PartSpec) -> None:
    if not tiny_models.attention_facts(part)["takes_segments"]:
        pytest.skip("its attention does not take packed documents (takes_segments = False)")
    net, rows = sample_parts.tuned_and_trained(part), tiny_models.tokens(1)
    segments = torch.tensor([[0] * 7 + [1] * 12 + [2] * 5])
    packed = _logits(net, rows, segments=segments)
    alone = torch.cat([_logits(net, rows[:, a:b]) for a, b in ((0, 7), (7, 19), (19, 24))], dim=1)
    apart = float((packed - alone).abs().max())
    assert apart < 1e-9, f"{checks.label(part)}: packed documents differ from each alone by {apart:g}"


def test_merges_and_comes_apart(part: PartSpec) -> None:
    net, tokens = sample_parts.tuned_and_trained(part), tiny_models.tokens()
    there, state = len(list(adapted(net))), {n: t.clone() for n, t in net.state_dict().items()}
    before = _logits(net, tokens)
    try:
        merged = merge(net)
    except UserError as error:
        assert torch.equal(_logits(net, tokens), before), f"{checks.label(part)}: a refused merge changes the model"
        pytest.skip(f"it cannot be merged, and the refused merge changed nothing: {error}")
    apart = float((_logits(net, tokens) - before).abs().max())
    assert apart < 1e-6, f"{checks.label(part)}: merging into the weights changes the logits by {apart:g}"
    assert not list(adapted(net))
    merged.restore()
    back = net.state_dict()
    assert back.keys() == state.keys() and all(torch.equal(back[n], t) for n, t in state.items())
    assert len(list(adapted(net))) == there and torch.equal(_logits(net, tokens), before)


def test_comes_back_from_its_state(part: PartSpec) -> None:
    """A model restored from a checkpoint's state gives the same logits."""
    first, other = sample_parts.tuned_and_trained(part), sample_parts.tuned(part, seed=5)[0].double()
    other.load_state_dict(first.state_dict())
    tokens = tiny_models.tokens()
    assert torch.equal(_logits(first, tokens), _logits(other, tokens)), (
        f"{checks.label(part)}: its state does not determine its logits"
    )


def test_seed_decides(part: PartSpec) -> None:
    """The initial weights depend on the seed alone, not on earlier draws."""
    starts = []
    for drawn in (0, 3):
        torch.rand(drawn)
        starts.append(sample_parts.tuned(part)[0].state_dict())
    same = all(torch.equal(starts[0][n], starts[1][n]) for n in starts[0])
    assert same, f"{checks.label(part)}: its initial weights depend on the global random state"


def test_groups_hold_what_trains(part: PartSpec) -> None:
    net, _ = sample_parts.tuned(part)
    grouped = {id(p) for group in groups_by_role(net) for p in group["params"]}
    assert grouped == {id(p) for p in net.parameters() if p.requires_grad}


def test_targets_that_are_not_there(part: PartSpec) -> None:
    if part.knob("targets") is None:
        pytest.skip("it has no knob `targets`")
    with pytest.raises(UserError, match=r"(there are|available layers:) .*\n.*try: peft.targets="):
        sample_parts.peft(part, {"targets": ("nowhere",)}).apply(tiny_models.model(part), 0)
