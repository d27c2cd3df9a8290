"""Rollouts against full passes, and what a row depends on."""

import pytest
import torch

from ablatio.model.decoding.generate import Sampling, generate
from ablatio.model.decoding.job import DecodingJob, Ending
from ablatio.model.decoding.logits import LogitsProcessors
from ablatio.model.decoding.rollout import sample_rollouts, streams
from ablatio.model.decoding.steps import greedy, token_by_token
from ablatio.model.kv_cache import KVCache
from ablatio.model.matmul_backend import few_rows
from ablatio.model.rl.policy_outputs import ValueHead, policy_outputs
from ablatio.testing import tiny_models

PROMPTS = [[5, 9, 3], [7, 7, 1, 2, 30, 11], [8], [12, 4, 50]]


@pytest.fixture(scope="module")
def net():
    return tiny_models.model().eval()


def drawn(net, prompts, *, group=1, stop=None, seed=0, length=10, draws=None, **settings):
    numbers = streams(seed, 0, len(prompts) * group, length) if draws is None else draws
    return sample_rollouts(net, prompts, numbers, stop=stop, new_tokens=length, group=group, **settings)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("stop", [None, 17])
def test_log_probabilities_equal_those_of_a_full_pass(net, temperature, stop):
    """Against single rows without cache, padding or batch."""
    found = drawn(net, PROMPTS, group=3, stop=stop, temperature=temperature)
    for row in range(12):
        prompt, answer = found.prompt(row), found.answer(row)
        assert prompt == PROMPTS[row // 3]
        with torch.no_grad():
            logits = net(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1] / temperature
        expected = logits.log_softmax(-1)[torch.arange(len(answer)), answer]
        assert torch.allclose(found.logps[row, : len(answer)], expected, atol=1e-5)
        assert not found.logps[row, len(answer) :].any() and not found.tokens[row, len(answer) :].any()
        said = stop in answer
        assert not said or answer.index(stop) == len(answer) - 1
        assert said or len(answer) == 10


def test_row_depends_on_its_prompt_and_stream_only(net):
    """It does not depend on the other rows, on which of them have ended, or on the batch size."""
    draws = streams(3, 1, 8, 10)
    whole = drawn(net, PROMPTS, group=2, stop=17, draws=draws)
    for rows in (1, 2, 64):
        again = drawn(net, PROMPTS, group=2, stop=17, draws=draws, rows=rows)
        assert torch.equal(whole.tokens, again.tokens)
        assert torch.allclose(whole.logps, again.logps, atol=1e-5)
    for i, prompt in enumerate(PROMPTS):
        alone = drawn(net, [prompt], group=2, stop=17, draws=draws[2 * i : 2 * i + 2])
        width = alone.tokens.shape[1]
        assert torch.equal(whole.tokens[2 * i : 2 * i + 2, :width], alone.tokens)


def test_streams_depend_on_seed_step_and_row():
    whole = streams(5, 2, 6, 9)
    assert torch.equal(whole, streams(5, 2, 6, 9))
    assert torch.equal(whole[:3], streams(5, 2, 3, 9))
    others = [streams(6, 2, 6, 9), streams(5, 3, 6, 9)]
    assert all(not torch.equal(whole, other) for other in others)
    assert len({tuple(row.tolist()) for row in whole}) == 6


def test_token_frequencies_match_their_probabilities(net):
    """Chi-square test of the counts of the first token in 20000 answers."""
    count = 20_000
    found = drawn(net, [PROMPTS[0]], group=count, length=1, rows=count)
    with torch.no_grad():
        chances = net(torch.tensor([PROMPTS[0]]))[0, -1].double().softmax(-1)
    counts = found.tokens[:, 0].bincount(minlength=tiny_models.VOCAB).double()
    distance = float(((counts - count * chances).square() / (count * chances)).sum())
    assert distance < len(chances) + 5 * (2 * len(chances)) ** 0.5


def test_greedy_decoding_without_draws(net):
    found = sample_rollouts(net, PROMPTS, None, stop=None, new_tokens=8)
    expected = generate(net, PROMPTS, 8, Sampling(temperature=0))
    assert [found.answer(row) for row in range(4)] == expected


def test_policy_outputs_equal_single_passes(net):
    """Entropy and values of each token against single-row passes; gradients reach the weights."""
    found = drawn(net, PROMPTS, group=2, stop=17)
    head = ValueHead(32)
    with torch.no_grad():
        head.weight.normal_(generator=torch.Generator().manual_seed(0))
        head.bias.fill_(0.3)
    said = policy_outputs(net, found, temperature=0.8, head=head)
    assert torch.allclose(policy_outputs(net, found).logps, found.logps, atol=1e-5)
    for row in range(8):
        prompt, answer = found.prompt(row), found.answer(row)
        hidden = net.model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
        chances = (net.logits(hidden) / 0.8).softmax(-1)
        entropy = -(chances * chances.log()).sum(-1)
        value = hidden @ head.weight / 32**0.5 + 0.3
        assert torch.allclose(said.entropy[row, : len(answer)], entropy, atol=1e-5)
        assert torch.allclose(said.values[row, : len(answer)], value, atol=1e-5)
        assert not said.values[row, len(answer) :].any()
    said.logps.sum().backward()
    assert net.lm_head.weight.grad.any()
    net.zero_grad()


@pytest.mark.parametrize("prompts", [PROMPTS, [[5, 9, 3, 7, 7, 1, 2, 30], [12, 4, 50]]], ids=["short", "two tokens on"])
def test_shared_prompt_gives_the_gradients_of_single_rows(net, prompts):
    """Against losses and gradients of single rows, in any order of the rows; one prompt has a single token."""
    found = drawn(net, prompts, group=6, stop=17)[torch.randperm(6 * len(prompts))]
    weights = torch.rand(found.mask.shape) * found.mask
    (policy_outputs(net, found).logps * weights).sum().backward()
    shared = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    for row, weight in enumerate(weights):
        prompt, answer = found.prompt(row), found.answer(row)
        logps = net(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        (logps[torch.arange(len(answer)), answer] * weight[: len(answer)]).sum().backward()
    for name, p in net.named_parameters():
        assert torch.allclose(shared[name], p.grad, atol=1e-4), name
    net.zero_grad()


@pytest.mark.parametrize("rows, whose", [(3, "highest"), (400, "medium")])
def test_matmul_backend_by_number_of_rows(net, rows, whose, monkeypatch):
    torch.set_float32_matmul_precision("medium")
    seen, forward = set(), net.lm_head.forward
    monkeypatch.setattr(net.lm_head, "forward", lambda x: seen.add(torch.get_float32_matmul_precision()) or forward(x))
    with torch.no_grad():
        cache = KVCache()
        net.read(torch.ones(rows, 4, dtype=torch.long), None, cache)
        seen.clear()
        net.extend(torch.ones(rows, 1, dtype=torch.long), cache)
    assert seen == {whose} and torch.get_float32_matmul_precision() == "medium"
    with pytest.raises(RuntimeError), few_rows(1, 8):
        raise RuntimeError
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize("stop", [None, 17])
def test_processors_are_those_of_decoding(net, stop):
    """Greedy answers equal decode=greedy; the log-probabilities remain those of the policy."""
    processors = LogitsProcessors(repetition=1.5, no_repeat_ngram=2)
    found = sample_rollouts(net, PROMPTS, None, stop=stop, new_tokens=8, processors=processors)
    ending = Ending(8, () if stop is None else (stop,))
    expected = token_by_token(DecodingJob(net, PROMPTS, ending), processors, greedy)
    assert [found.answer(row, stop) for row in range(4)] == [c[0].ids for c in expected]
    for row, prompt in enumerate(PROMPTS):
        answer = found.answer(row)
        with torch.no_grad():
            log_p = net(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert torch.allclose(found.logps[row, : len(answer)], log_p[torch.arange(len(answer)), answer], atol=1e-5)


def test_rollouts_keep_to_the_tokens_that_are_left(net):
    few = drawn(net, PROMPTS, group=50, length=2, processors=LogitsProcessors(top_k=3))
    with torch.no_grad():
        best = torch.stack([net(torch.tensor([p]))[0, -1].topk(3).indices for p in PROMPTS])
    assert all((few.tokens[50 * i : 50 * (i + 1), :1] == best[i]).any(1).all() for i in range(4))
    assert torch.equal(few.tokens, drawn(net, PROMPTS, group=50, length=2, processors=LogitsProcessors(top_k=3)).tokens)
