"""A part divided over two devices, as its facts declare, gives the loss and the gradients of one device."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from ablatio.errors import UserError
from ablatio.model.build import build_model
from ablatio.model.example import Example, Loss
from ablatio.model.language_model import LanguageModel, loss_of
from ablatio.model.parameter_roles import named_generator
from ablatio.registry.registry import REGISTRIES, PartSpec, Registry
from ablatio.testing import checks, sample_parts, tiny_models, two_stages, two_threads
from ablatio.testing.other_knob_values import other_values

TOLERANCE = 1e-9
WHOLE_BATCH = {"layers": {"microbatches": 1}}


def KINDS(registry: Registry[Any]) -> bool:  # noqa: N802
    """True for kinds of which the forward pass consists, and for objectives, which compute the loss."""
    divided = {"tensor_parallel", "splits_tokens"} <= registry.facts.keys()
    return registry.scope == "model" or divided or registry.kind == "objective"


def _refused(part: PartSpec, knobs: Mapping[str, Any], splits: str) -> str:
    """Why a strategy that divides heads, tokens or layers refuses the small model with this part; "" if it does not."""
    try:
        made = tiny_models.config(part, knobs)
    except UserError as error:
        return str(error)
    if isinstance(knobs.get("targets"), tuple):
        return "names of layers"
    if not any(s.facts["splits"] == splits for s in REGISTRIES["strategy"]):
        return f"no strategy divides {splits}"
    return "; ".join(str(problem) for problem in tiny_models.broken_rules(_divided(made, splits)))


def _divided(made: dict[str, Any], splits: str) -> dict[str, Any]:
    """The config on two devices, with the strategy that divides heads, tokens or layers."""
    strategy = next(s for s in REGISTRIES["strategy"] if s.facts["splits"] == splits)
    settings = {"name": strategy.name, **strategy.defaults, **WHOLE_BATCH.get(splits, {})}
    return made | {"strategy": settings, "trainer": made["trainer"] | {"devices": two_threads.COUNT}}


def _models(part: PartSpec, splits: str, declares: Any) -> Iterator[tuple[str, LanguageModel]]:
    """(what it is built with, small model with the part), the defaults first; skips a part that is refused.

    declares  true if the part says how it is divided: then each knob is tried at another value, too.

    No weight is zero; dropout would draw other numbers in each thread.
    """
    if part.kind == "objective" and splits != "layers":
        pytest.skip("no part of a model")
    settings: list[dict[str, Any]] = [{}]
    if declares:
        settings += [{knob.name: value} for knob in part.knobs for value in other_values(knob)[:1]]
    for knobs in settings:
        why = _refused(part, knobs, splits)
        if why and not knobs:
            pytest.skip(why)
        if why:
            continue
        net = sample_parts.tuned(part, knobs)[0] if part.kind == "peft" else tiny_models.model(part, knobs)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
        yield f"with {knobs}" if knobs else "with its defaults", net.double().eval()


def test_heads_and_features(part: PartSpec) -> None:
    """Loss and all gradients, in two threads with half of the heads and features each, are those of the whole model."""
    for where, net in _models(part, "heads", part.facts.get("row_parallel")):
        axes, found = two_threads.divided_axes(net), two_threads.gradients(net, _loss)
        loss = _loss(net)
        loss.backward()  # type: ignore[no-untyped-call]
        for index, own in enumerate(found):
            checks.near(part, own["loss"], loss.detach(), f"{where}: the loss of a divided model", TOLERANCE)
            for name, p in net.named_parameters():
                if p.grad is None:
                    continue
                ours, theirs = own.get(name, torch.zeros_like(p)), p.grad
                if name in axes:
                    ours, theirs = (g.chunk(two_threads.COUNT, dim=axes[name])[index] for g in (ours, theirs))
                checks.near(part, ours, theirs, f"{where}: the gradient of {name} in a divided model", TOLERANCE)


def _loss(net: nn.Module) -> torch.Tensor:
    return tiny_models.mean_loss(net, tiny_models.example(2, 12))  # type: ignore[arg-type]


def test_tokens(part: PartSpec) -> None:
    """Loss and all gradients of two threads with half of the tokens each add up to those of whole rows."""
    attends = part.facts.get("splits_tokens") and part.facts.get("caches")
    for where, net in _models(part, "tokens", attends):
        example = tiny_models.example(2, 13)  # 6 and 7 tokens
        if tiny_models.attention_facts(part)["takes_segments"]:
            example.segments = (torch.arange(13) >= torch.tensor([[5], [9]])).long()  # two documents in each row
        _adds_up(part, net, example, where)


def test_tokens_that_see_later_ones(part: PartSpec) -> None:
    """The same in an encoder, with a batch of the objective that it is made for: most targets have no loss."""
    if part.kind == "objective" or not (part.facts.get("splits_tokens") or part.kind == "position"):
        pytest.skip("no part of a model that divides tokens")
    encoder = next((a for a in REGISTRIES["architecture"] if a.facts["mask"] == "full"), None)
    made = tiny_models.config(part)
    if encoder is None or part.kind == "architecture":
        pytest.skip("no other architecture")
    for entry in (encoder, REGISTRIES["objective"][encoder.facts["objective"]]):
        made[entry.kind] = {"name": entry.name, **entry.defaults}
    if why := "; ".join(map(str, tiny_models.broken_rules(_divided(made, "tokens")))):
        pytest.skip(why)
    objective = sample_parts.objective(REGISTRIES["objective"][made["objective"]["name"]])
    rows, documents = sample_parts.token_rows()
    packed = documents[:2, :14] if tiny_models.attention_facts(part)["takes_segments"] else None
    example = objective(rows[:2, :14], packed, named_generator(0, "objective"))
    net = build_model(made, tiny_models.VOCAB).double().eval()
    _adds_up(part, net, example, "in an encoder")


def _adds_up(part: PartSpec, net: LanguageModel, example: Example, where: str) -> None:
    found = two_threads.token_gradients(net, example)
    loss = net.loss(example).total
    loss.backward()  # type: ignore[no-untyped-call]
    added = found[0]["loss"] + found[1]["loss"]
    checks.near(part, added, loss.detach(), f"{where}: the loss of divided rows", TOLERANCE)
    for name, p in net.named_parameters():
        if p.grad is not None:
            ours = sum(own.get(name, torch.zeros_like(p)) for own in found)
            assert isinstance(ours, torch.Tensor)
            checks.near(part, ours, p.grad, f"{where}: the gradient of {name} with divided rows", TOLERANCE)


def test_rows_of_the_vocabulary(part: PartSpec) -> None:
    """Loss and all gradients, in two threads with half of the rows of embedding and head each, are those of one."""
    if part.kind != "objective" or part.facts["reads_head"]:
        pytest.skip("no objective, or it reads the matrix of the head (reads_head = True)")
    net = tiny_models.model(part, vocab_size=256).double().eval()
    objective = sample_parts.objective(part)
    example = _example_of(objective)

    def loss_in(model: Any) -> torch.Tensor:
        return loss_of(objective, model, example).total

    found, loss = two_threads.vocabulary_gradients(net, loss_in), loss_in(net)
    loss.backward()  # type: ignore[no-untyped-call]
    checks.near(part, found[0]["loss"], loss.detach(), "the loss with a divided vocabulary", TOLERANCE)
    tables = {id(net.lm_head.weight), id(net.model.embed_tokens.weight)}
    for name, p in net.named_parameters():
        if p.grad is not None:
            ours = found[0].get(name, torch.zeros_like(p))
            ours = ours + found[1].get(name, torch.zeros_like(p)) if id(p) in tables else ours
            checks.near(part, ours, p.grad, f"the gradient of {name} with a divided vocabulary", TOLERANCE)


def test_layers(part: PartSpec) -> None:
    """Loss and all gradients of two stages, each with half of the layers and no other weights, are those of the model.

    A batch passes in two parts, if the part does not depend on all of it.
    """
    for where, net in _models(part, "layers", False):
        objective = sample_parts.objective(part) if part.kind == "objective" else None
        example = _example_of(objective)

        def loss_of_part(model: Any, rows: Example, objective: Any = objective) -> Loss:
            return loss_of(objective, model, rows)

        count = 1 if part.facts.get("batch_dependent") else 2
        found = two_stages.gradients(net, example, loss_of_part, count)
        loss = loss_of_part(net, example).total
        loss.backward()  # type: ignore[no-untyped-call]
        checks.near(part, found["loss"], loss.detach(), f"{where}: the loss of two stages", TOLERANCE)
        for name, p in net.named_parameters():
            if p.grad is not None:
                ours = found.get(name, torch.zeros_like(p))
                checks.near(part, ours, p.grad, f"{where}: the gradient of {name} in two stages", TOLERANCE)


def _example_of(objective: Any) -> Example:
    """An example of the objective, by default next tokens."""
    if objective is None:
        return tiny_models.example(2, 12)
    rows, documents = sample_parts.token_rows()
    made: Example = objective(rows[:2], documents[:2], named_generator(0, "objective"))
    return made
