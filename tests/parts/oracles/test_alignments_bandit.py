"""Actor-critic methods on a bandit: with exact expectations they converge to the tilted reference policy."""

import pytest
import torch

from ablatio.registry.kinds import alignments


def bandit(beta, rewards, reference, *, steps, name="ppo", **knobs):
    """Train a policy over five one-token answers without sampling noise; return its probabilities.

    The rollout contains each answer in proportion to its probability, rounded to 1/2000.
    """
    method, asks = alignments.build(name, knobs), alignments[name].facts["asks"]
    logits, values = reference.clone().requires_grad_(), torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits, values], lr=0.05)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / steps)
        with torch.no_grad():
            policy = logits.log_softmax(0)
            counts = (policy.exp() * 2000).round().long().clamp(min=1)
            drawn = torch.repeat_interleave(torch.arange(5), counts)
            words = {"token_rewards": rewards[drawn][:, None], "mask": torch.ones(len(drawn), 1).double()}
            words |= {"old_logps": policy[drawn][:, None], "ref_logps": reference[drawn][:, None]}
            words["old_values"] = values.detach().expand(len(drawn), 1)
            found = method.advantages(**{w: words[w] for w in asks["advantages"]})
            words |= {"advantages": found.advantages, "returns": found.returns}
        for _ in range(method.epochs):
            now = logits.log_softmax(0)
            words |= {"logps": now[drawn][:, None], "values": values.expand(len(drawn), 1)}
            words["entropy"] = -(now.exp() * now).sum().expand(len(drawn), 1)
            value, _ = method.loss(**{w: words[w] for w in asks["loss"]})
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    return logits.detach().softmax(0)


@pytest.mark.oracle("alignment=ppo", "closed form: reference x exp(r / beta) / Z on a bandit")
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_ppo_converges_to_the_tilted_reference(beta):
    generator = torch.Generator().manual_seed(1)
    reference = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0)
    rewards = torch.randn(5, generator=generator, dtype=torch.float64)
    found = bandit(
        beta, rewards, reference, steps=250, kl_coef=beta, whiten=False, vf_coef=1.0, clip_value=None, epochs=2
    )
    assert torch.allclose(found, (reference + rewards / beta).softmax(0), atol=5e-3)


@pytest.mark.oracle("alignment=a2c", "closed form: reference x exp(r / beta) / Z on a bandit")
def test_a2c_converges_to_the_tilted_reference():
    generator = torch.Generator().manual_seed(1)
    reference = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0)
    rewards = torch.randn(5, generator=generator, dtype=torch.float64)
    found = bandit(1.0, rewards, reference, steps=400, name="a2c", kl_coef=1.0, entropy_coef=0.0)
    assert torch.allclose(found, (reference + rewards).softmax(0), atol=5e-3)
