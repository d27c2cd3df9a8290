"""Alignment methods: words of one form of data -> (loss, metrics), and for policy methods rewards -> advantages."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ablatio.registry.kinds.alignment_inputs import WORDS, Advantages
from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_alignments
from ablatio.testing.sample_alignments import POLICY

KINDS = ("alignment",)


def _words(part: PartSpec, method: Any, seed: int = 0) -> dict[str, Any]:
    """Inputs that the task would pass; the advantages of a policy method are computed by the method itself."""
    words = sample_alignments.batch(part.facts["data"], seed, group=getattr(method, "group", 1))
    if part.facts["data"] == "prompts":
        found = _advantages(part, method, words)
        words |= {"advantages": found.advantages, "returns": found.returns}
    return words


def _advantages(part: PartSpec, method: Any, words: dict[str, Any]) -> Advantages:
    with torch.no_grad():
        found = method.advantages(**{w: words[w] for w in part.facts["asks"]["advantages"]})
    right = isinstance(found, Advantages)
    assert right, f"{checks.label(part)}: advantages gives {type(found).__name__}; expected an Advantages"
    return found  # type: ignore[no-any-return]


def _loss(part: PartSpec, method: Any, words: dict[str, Any]) -> tuple[Tensor, dict[str, Any], dict[str, Tensor]]:
    given = sample_alignments.leaves(words, part.facts["asks"]["loss"])
    loss, metrics = method.loss(**given)
    return loss, given, metrics


def test_data_is_known(part: PartSpec) -> None:
    data = part.facts["data"]
    assert data in WORDS, f"{checks.label(part)}: data is {data!r}; there are {', '.join(WORDS)}"
    for method, asked in part.facts["asks"].items():
        strange = [w for w in asked if w not in WORDS[data]]
        assert not strange, f"{checks.label(part)}: `{method}` has the parameters {strange}, which {data} lack"
    if data == "prompts":
        method = sample_alignments.made(part)
        lacks = [a for a in ("advantages", "group", "epochs", "minibatches") if not hasattr(method, a)]
        assert not lacks, f"{checks.label(part)}: learns from prompts and has no `{lacks[0]}`"


def test_loss_is_one_finite_number(part: PartSpec) -> None:
    method = sample_alignments.made(part)
    loss, given, metrics = _loss(part, method, _words(part, method))
    assert loss.shape == (), f"{checks.label(part)}: the loss has the shape {tuple(loss.shape)}; expected ()"
    checks.finite(part, loss, "in the loss")
    loss.backward()  # type: ignore[no-untyped-call]
    learns = [w for w, x in given.items() if w in POLICY and x.grad is not None and x.grad.any()]
    assert learns, f"{checks.label(part)}: no gradient reaches the policy's log-probabilities"
    for word in learns:
        checks.finite(part, given[word].grad, f"in the gradient of {word}")
    said = set(part.facts["metrics"])
    unknown = sorted(metrics.keys() - said)
    assert not unknown, f"{checks.label(part)}: logs {unknown}, which `metrics` {sorted(said)} does not name"
    for name, value in metrics.items():
        one = value.numel() == 1 and not value.requires_grad
        assert one, f"{checks.label(part)}: {name} must be one number without a gradient"
        checks.finite(part, value.double(), f"in {name}")


def test_gradients(part: PartSpec) -> None:
    if part.facts["detached"]:
        pytest.skip("its loss has no gradients to check (detached = True)")
    method = sample_alignments.made(part)
    words = _words(part, method, seed=1)
    given = sample_alignments.leaves(words, part.facts["asks"]["loss"])
    learns = [w for w in given if w in POLICY]

    def call(*values: Tensor) -> Tensor:
        loss, _ = method.loss(**(given | dict(zip(learns, values, strict=True))))
        return loss  # type: ignore[no-any-return]

    checks.gradients_agree(part, call, *(given[w] for w in learns))


def test_order_of_the_batch_does_not_matter(part: PartSpec) -> None:
    method = sample_alignments.made(part)
    words = _words(part, method)
    rows = len(next(x for x in words.values() if isinstance(x, Tensor) and x.dim()))
    group = getattr(method, "group", 1)
    order = torch.randperm(rows // group, generator=torch.Generator().manual_seed(2))
    rows_of = (order[:, None] * group + torch.arange(group)).flatten()
    turned = {w: x[rows_of] if isinstance(x, Tensor) and x.dim() else x for w, x in words.items()}
    checks.near(part, _loss(part, method, turned)[0], _loss(part, method, words)[0], "the batch in another order")


def test_padding_does_not_matter(part: PartSpec) -> None:
    """Additional padding columns after each answer change nothing."""
    method = sample_alignments.made(part)
    words = _words(part, method)
    wider = {
        w: torch.cat([x, x.new_zeros(len(x), 2)], 1)
        if isinstance(x, Tensor) and x.shape[1:] == (sample_alignments.T,)
        else x
        for w, x in words.items()
    }
    if part.facts["data"] == "prompts":
        found = _advantages(part, method, {**wider})
        wide, narrow = found.advantages, words["advantages"]
        checks.near(part, wide[:, : sample_alignments.T] if wide.dim() > 1 else wide, narrow, "advantages with padding")
    checks.near(part, _loss(part, method, wider)[0], _loss(part, method, words)[0], "two columns of padding")


def test_inputs_stay_as_they_are(part: PartSpec) -> None:
    method = sample_alignments.made(part)
    words = _words(part, method)
    with checks.unchanged(part, *(x for x in words.values() if isinstance(x, Tensor))):
        method.loss(**{w: words[w] for w in part.facts["asks"]["loss"]})
        if part.facts["data"] == "prompts":
            _advantages(part, method, words)


def test_better_answers_are_preferred(part: PartSpec) -> None:
    """Moving the policy from the reference towards the better answer, slightly or far, lowers the loss."""
    if part.facts["data"] != "pairs":
        pytest.skip("it does not learn from pairs of answers")
    method, words = sample_alignments.made(part), sample_alignments.batch("pairs")
    start = {w: words[f"ref_{w}"] for w in ("chosen", "rejected", "chosen_tokens", "rejected_tokens")}
    loss, given, _ = _loss(part, method, words | start)
    loss.backward()  # type: ignore[no-untyped-call]
    signs = {"chosen": 1, "chosen_tokens": 1, "rejected": -1, "rejected_tokens": -1}
    gradients = {w: given[w].grad for w in signs if w in given and given[w].grad is not None}
    slope = sum(float(signs[w] * gradient.sum()) for w, gradient in gradients.items())
    far = words | {w: start[w] + 40 * sign for w, sign in signs.items()}
    ahead = _loss(part, method, far)[0].item()
    better = slope < 0 or ahead < loss.item()
    assert better, f"{checks.label(part)}: the slope to the better answer is {slope:.3g}, the loss far on {ahead:.3g}"


def test_equal_rewards_teach_nothing_wrong(part: PartSpec) -> None:
    """With equal rewards for all answers, advantages are finite."""
    if part.facts["data"] != "prompts":
        pytest.skip("it does not learn from rewards of sampled answers")
    method = sample_alignments.made(part)
    words = sample_alignments.batch("prompts", group=method.group)
    words |= {"rewards": torch.full_like(words["rewards"], 0.5), "greedy_rewards": words["rewards"] * 0 + 0.5}
    checks.finite(part, _advantages(part, method, words).advantages, "in the advantages of equal rewards")


def test_more_reward_is_no_disadvantage(part: PartSpec) -> None:
    if part.facts["data"] != "prompts":
        pytest.skip("it does not learn from rewards of sampled answers")
    method = sample_alignments.made(part)
    words = sample_alignments.batch("prompts", group=method.group)
    before = _advantages(part, method, words).advantages
    mask, last = words["mask"], words["mask"].sum(1).long() - 1
    gain = torch.zeros_like(words["rewards"])
    gain[1] = 0.3
    more = words | {"rewards": words["rewards"] + gain, "token_rewards": words["token_rewards"].clone()}
    more["token_rewards"][1, last[1]] += 0.3
    after = _advantages(part, method, more).advantages
    a, b = (float((x[1] * mask[1]).sum()) if x.dim() > 1 else float(x[1]) for x in (before, after))
    assert b >= a - 1e-9, f"{checks.label(part)}: an answer that earns more gets the advantage {b:.3g}, before {a:.3g}"


def test_state_comes_back(part: PartSpec) -> None:
    """State that lasts between rollouts is in state_dict: a restored instance continues identically."""
    first, again = sample_alignments.made(part), sample_alignments.made(part)
    if not hasattr(first, "state_dict"):
        pytest.skip("it keeps no state (no state_dict)")
    for kl in (3.0, 9.0, 0.1):
        first.observe(kl)
    again.load_state_dict(first.state_dict())
    words = sample_alignments.batch("prompts", group=first.group)
    a, b = (_advantages(part, method, words).advantages for method in (first, again))
    assert torch.equal(a, b), f"{checks.label(part)}: with the state of another instance it behaves differently"
